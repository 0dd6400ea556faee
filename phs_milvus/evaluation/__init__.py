"""Does pointing help, by how much, with which settings, and at what cost: measured on labelled images.

    from phs_milvus import Encoder, Focus
    from phs_milvus.evaluation import Bench, Focused, Store, WholeImage, evaluate, load, object_queries

    dataset = load("VOC2007")
    with Encoder("127.0.0.1:50051") as encoder, Store(".phs-eval", encoder.info) as store:
        bench = Bench(encoder, dataset, store)
        queries = bench.queries(object_queries(dataset), "box")
        for method in (WholeImage(), Focused(Focus.paper(1))):
            print(method.name, evaluate(method, bench, queries).mean("MP@100"))

A pure client of the embedding server. The protocol is that of docs/DESIGN.md, "Evaluation".
"""

from phs_milvus.evaluation.bench import Bench, QuerySet
from phs_milvus.evaluation.datasets import AnnotationError, Dataset, Instance, LabelledImage, load
from phs_milvus.evaluation.measures import Outcome, evaluate, paired
from phs_milvus.evaluation.methods import Average, Edited, FixedHeads, Focused, Foveal, Method, TwoStage, WholeImage
from phs_milvus.evaluation.queries import ObjectQuery, object_queries
from phs_milvus.evaluation.store import Store

__all__ = [
    "AnnotationError",
    "Average",
    "Bench",
    "Dataset",
    "Edited",
    "FixedHeads",
    "Focused",
    "Foveal",
    "Instance",
    "LabelledImage",
    "Method",
    "ObjectQuery",
    "Outcome",
    "QuerySet",
    "Store",
    "TwoStage",
    "WholeImage",
    "evaluate",
    "load",
    "object_queries",
    "paired",
]
