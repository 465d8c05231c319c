"""The tiny config, merged into Detectron2's; data for LazyConfigs, and of another project."""

import logging

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


@pytest.fixture
def loggers():
    """Leave loggers as they were: Detectron2's programs give them handlers, once a process."""
    setup_logger = pytest.importorskip("detectron2.utils.logger").setup_logger
    changed = [logging.getLogger(name) for name in ("detectron2", "fvcore", "smca")]
    before = [(logger.handlers.copy(), logger.propagate, logger.level) for logger in changed]
    setup_logger.cache_clear()
    yield
    setup_logger.cache_clear()
    for logger, state in zip(changed, before, strict=True):
        logger.handlers, logger.propagate, level = state
        logger.setLevel(level)


@pytest.fixture
def theirs(shapes):
    """theirs_train and theirs_val, registered in Detectron2's way."""
    data = pytest.importorskip("detectron2.data")
    from detectron2.data.datasets import register_coco_instances

    for name, files in shapes.items():
        register_coco_instances(f"theirs_{name}", {}, *files)
    yield
    for name in shapes:
        data.DatasetCatalog.remove(f"theirs_{name}")
        data.MetadataCatalog.remove(f"theirs_{name}")
