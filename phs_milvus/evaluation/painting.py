"""Queries with their prompts drawn, and which objects of a labelled set can be pointed at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from phs_milvus.contract.errors import InvalidInput, PromptError
from phs_milvus.contract.types import MaskRuns
from phs_milvus.evaluation.datasets import AnnotationError, Dataset
from phs_milvus.evaluation.queries import ObjectQuery, outline_of, prompt_of
from phs_milvus.pointing.prompts import Prompt, to_runs

Size = tuple[int, int]
# A kind of prompt, or a function of a query and its image's width and height.
Drawing = str | Callable[[ObjectQuery, int, int], Prompt]


def painted(query: ObjectQuery, prompt: Drawing, dataset: Dataset, sizes: Sequence[Size]) -> MaskRuns:
    """A query's prompt on its image.

    Args:
        sizes: width and height of every image of the dataset.

    Raises:
        PromptError: the query cannot be pointed at so; the text names its image, its class and the reason.
    """
    width, height = sizes[query.image]
    try:
        if isinstance(prompt, str):
            runs = to_runs(prompt_of(query.instance, prompt, width, height), width, height)
        else:
            runs = to_runs(prompt(query, width, height), width, height)
    except InvalidInput as error:
        # Every annotation is of this dataset, so that the path of its file would say nothing more.
        problem = error.problem if isinstance(error, AnnotationError) else str(error)
        raise PromptError(f"{_name(query, dataset)}: {problem}", error.field) from None
    assert runs is not None
    return runs


def paintable(
    queries: Sequence[ObjectQuery], prompts: Sequence[str], dataset: Dataset, sizes: Sequence[Size]
) -> tuple[list[ObjectQuery], list[str], list[str]]:
    """The queries that every kind of prompt can point at: labelled sets hold outlines of two points and the like.

    One set for all kinds, so that differences between them stay paired.

    Returns:
        The queries; what is wrong with each of the others; and the names of those for which "point" takes the centre
        of the box because the outline is broken.
    """
    usable, left_out, boxed = [], [], []
    for query in queries:
        try:
            for prompt in prompts:
                painted(query, prompt, dataset, sizes)
        except InvalidInput as error:
            left_out.append(str(error))
            continue
        usable.append(query)
        wants_outline = "point" in prompts and query.instance.segment is not None
        if wants_outline and outline_of(query.instance, *sizes[query.image]) is None:
            boxed.append(_name(query, dataset))
    return usable, left_out, boxed


def _name(query: ObjectQuery, dataset: Dataset) -> str:
    return f"{dataset.images[query.image].id}, {query.instance.label}"
