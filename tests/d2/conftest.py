"""The tiny config, merged into Detectron2's."""

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
