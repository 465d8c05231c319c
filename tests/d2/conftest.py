"""The tiny config, merged into Detectron2's, and the same data for LazyConfigs."""

import pytest

from smca.config import load_cfg


@pytest.fixture
def d2_config(config_file):
    """``d2_config("KEY", value, ...)``: that file merged into Detectron2's config."""
    detectron2 = pytest.importorskip("detectron2.config")
    from smca.d2 import add_smca_config, register_datasets
    from smca.engine.prepare import prepare

    def load(*opts):
        cfg = detectron2.get_cfg()
        add_smca_config(cfg)
        cfg = prepare(load_cfg(cfg, config_file(*opts)))
        register_datasets(cfg)
        return cfg

    return load


@pytest.fixture(scope="session")
def lazy_data(shapes):
    """Overrides: the drawn shapes of these tests, in this process."""
    files = ",".join(f"[{name},{json},{root}]" for name, (json, root) in shapes.items())
    return [
        *(f"dataloader.coco_format=[{files}]", "dataloader.train.num_workers=0"),
        *("dataloader.train.dataset.names=train", "dataloader.test.dataset.names=val"),
    ]
