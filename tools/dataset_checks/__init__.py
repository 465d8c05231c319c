"""The checks of tools/check_dataset.py."""
