"""COCO with the augmentation of section 4.1: flip, half of the time a crop, resize."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts

from smca.d2 import DetrDatasetMapper
from smca.d2.dataset_mapper import Resize
from smca.d2.datasets import training_records
from smca.d2.evaluation import CocoEvaluator
from smca.data.loader import build_test_loader, build_train_loader
from smca.data.mapper import LONGEST_BEFORE_CROP

dataloader = dict(
    # Datasets of your own, as [name, annotation file, image folder].
    coco_format=[],
    train=L(build_train_loader)(
        dataset=L(training_records)(names="coco_2017_train", filter_empty=True),
        mapper=L(DetrDatasetMapper)(
            is_train=True,
            augmentations=[
                L(T.RandomFlip)(horizontal=True, vertical=False),
                L(T.RandomApply)(
                    tfm_or_aug=L(T.AugmentationList)(
                        augs=[
                            L(Resize)(
                                short_edge_length=[400, 500, 600],
                                max_size=LONGEST_BEFORE_CROP,
                                sample_style="choice",
                            ),
                            L(T.RandomCrop)(crop_type="absolute_range", crop_size=[384, 600]),
                        ]
                    ),
                    prob=0.5,
                ),
                L(Resize)(
                    short_edge_length=list(range(480, 801, 32)),
                    max_size=1333,
                    sample_style="choice",
                ),
            ],
            image_format="RGB",
            grey_bits=0,
        ),
        # Images an iteration, over all processes.
        total_batch_size=16,
        aspect_ratio_grouping=True,
        num_workers=4,
    ),
    test=L(build_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
        mapper=L(DetrDatasetMapper)(
            is_train=False,
            augmentations=[
                L(Resize)(short_edge_length=800, max_size=1333, sample_style="choice"),
            ],
            image_format="${...train.mapper.image_format}",
            grey_bits="${...train.mapper.grey_bits}",
        ),
        num_workers="${..train.num_workers}",
    ),
    evaluator=L(CocoEvaluator)(
        dataset_name="${..test.dataset.names}",
        output_dir="${train.output_dir}/inference",
        by_class=True,
        max_dets_per_image=100,
    ),
)
