"""What the native host makes of detections, for tests that have no detector."""

from collections.abc import Iterable

from smca.data.coco import CocoDataset
from smca.evaluation.detections import tabulate
from smca.evaluation.evaluate import evaluate, read_ground_truth
from smca.structures import Detections


def scored(
    found: Iterable[tuple[int, Detections]], dataset: CocoDataset, folder: object, **options: bool
) -> dict[str, float]:
    """Return the AP of detections on a dataset, whose results are written to a folder; it is empty
    where there is nothing to score with.
    """
    ground_truth = read_ground_truth(dataset.name, dataset.json_file)
    results = evaluate(dataset.name, tabulate(found), ground_truth, str(folder), **options)
    assert list(results) in (["bbox"], [])
    return results.get("bbox", {})
