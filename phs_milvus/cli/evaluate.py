"""The flags and the output of `phs-milvus eval` and `phs-milvus tune`; phs_milvus.evaluation does the work."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from phs_milvus.cli.connections import open_encoder
from phs_milvus.cli.places import output_file, output_folder
from phs_milvus.contract.errors import InvalidInput, PhsError

# Repeated here because phs_milvus.evaluation is imported only by the commands that need it.
_PRESETS = {
    "table1": "every way of pointing, with and without PHS, for each kind of prompt",
    "scores": "ann, query_db and blend, with and without roi and crops, for clean and shifted boxes",
    "thresholds": "precision, and the share of relevant images kept, at score thresholds: for --min-score",
    "examples": "several examples of a thing, and counter-examples",
    "heads": "how many heads to keep, scaled or not, against random and bottom heads",
    "robustness": "jittered boxes, displaced points, sloppy outlines",
    "small-models": "how much the heads of a small model differ, and what selecting among them can gain",
    "overhead": "latency, throughput and bytes per image",
    "recall": "how many candidates two-stage search through Milvus needs",
}
# Here for the same reason; a test compares them with the package's.
FORMATS = {
    "voc": "Annotations/*.xml with JPEGImages/ or images/, or XML beside the pictures (labelImg, Roboflow)",
    "coco": "an instances JSON of any tool: boxes, polygons, run lengths",
    "visual-genome": "objects.json, image_data.json, VG_100K/",
    "table": "CSV, TSV or JSONL, one object a row: image,x0,y0,x1,y1,label in pixels, or TensorFlow's, Roboflow's,\n"
    "                 Keras's or Open Images' columns",
    "yolo": "data.yaml, or images/ and labels/: boxes or polygons",
    "labelme": "a JSON file for each picture",
    "cvat": "annotations.xml, exported as 'CVAT for images 1.1'",
    "label-studio": "JSON or JSON-MIN",
    "fiftyone": "samples.json or labels.json with data/",
}
_FORMATS = (
    "DATASET is a file or folder in one of these formats, which is recognised; if not, give --format:\n"
    + "\n".join(f"  {name:<14} {text}" for name, text in FORMATS.items())
    + """

Records that cannot be used are left out and named. Labels that were made at another size, or before EXIF rotation,
are converted to the picture's own pixels if the sizes show how; otherwise the picture is left out, and the message
names the flag that decides.

Sets of under 300 images are compared by mAP instead of MP@100, which would be most of them.

The protocol: every image with objects of two or more classes is a query once per class, with the class's largest
object. An image of the dataset is relevant if it contains an object of that class. MP@100 is the share of relevant
images among the first 100, without the query's own image. Differences are paired differences to whole-image search."""
)


def add_commands(commands: Any) -> None:
    """Adds the two commands to argparse's subparsers."""
    presets = "\n".join(f"  {name:<14}{text}" for name, text in _PRESETS.items())
    evaluate = _parser(
        commands,
        "eval",
        "measure on labelled images whether pointing helps, and by how much",
        f"Runs an experiment on your labelled images and your model, and writes a folder with README.md (tables),\n"
        f"CSV, JSON and PNG plots.\n\nPresets:\n{presets}\n\n{_FORMATS}",
        "Every image is encoded once and kept in --cache, so other presets and settings encode only what is missing,\n"
        "and an interrupted run continues.\n\nExample: phs-milvus eval VOC2007 --preset table1 --limit 200",
    )
    evaluate.add_argument("--preset", choices=_PRESETS, default="table1", help="(default: %(default)s)")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default: eval-PRESET)")
    evaluate.set_defaults(run=_evaluate)

    tune = _parser(
        commands,
        "tune",
        "choose search settings for your images by cross-validation",
        "Tries scores, head counts, roi, crops and averages of scales on your labelled images, prints quality against\n"
        "query latency, and writes\n"
        f"the settings for `phs-milvus search --settings FILE`.\n\n{_FORMATS}",
        "Quality is cross-validated over images: each fold is answered with what is best on the others. Recommended\n"
        "is the cheapest setting within one standard error of the best.\n\n"
        "Example: phs-milvus tune my-labels.csv --out focus.json",
    )
    tune.add_argument(
        "--out", type=Path, default=Path("focus.json"), metavar="FILE", help="settings file (default: %(default)s)"
    )
    tune.set_defaults(run=_tune)


def _parser(commands: Any, name: str, help: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=help, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", metavar="DATASET", help="labelled images, see above")
    parser.add_argument("--images", metavar="DIR", help="where the image files are, if not beside the annotations")
    parser.add_argument("--format", choices=tuple(FORMATS), help="format of DATASET (default: detected)")
    parser.add_argument(
        "--boxes", choices=("pixels", "shares"), help="what a COCO file's or a table's boxes are in (default: pixels)"
    )
    parser.add_argument(
        "--frame",
        choices=("upright", "stored"),
        help="how photos that EXIF turns were labelled, where sizes do not tell (default: such photos are left out)",
    )
    parser.add_argument(
        "--prompt",
        default="box",
        metavar="KIND[,KIND]",
        help="box, point or segmentation; the first is what experiments with one kind use (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N images only, for a first impression")
    parser.add_argument("--queries", type=int, metavar="N", help="measure N queries, at even steps through all of them")
    parser.add_argument("--seed", type=int, default=0, help="seed of jitters and folds (default: %(default)s)")
    parser.add_argument(
        "--cache", default=".phs-eval", metavar="DIR", help="where encoded images are kept (default: %(default)s)"
    )
    parser.add_argument(
        "--milvus",
        metavar="URI",
        help="Milvus for two-stage methods, in a collection that is dropped at the end (default: Milvus Lite in a "
        "temporary folder)",
    )
    parser.add_argument(
        "--token", default=os.environ.get("PHS_MILVUS_TOKEN", ""), help="token of the Milvus server [PHS_MILVUS_TOKEN]"
    )
    group = parser.add_argument_group("models", "repeat a flag to compare several models")
    group.add_argument(
        "--encoder", action="append", default=[], metavar="HOST:PORT", help="a running phs-server [PHS_ENCODER]"
    )
    group.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="ID",
        help="a model to serve here for this run (default: facebook/dinov2-base) [PHS_MODEL]",
    )
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    from phs_milvus.evaluation.experiments import PRESETS
    from phs_milvus.evaluation.report import Report, as_text, is_report

    dataset, prompts = _checked(options)
    out = output_folder(options.out or Path(f"eval-{options.preset}"), "out", is_report)

    def show(sections: list[Any]) -> None:
        for section in sections:
            print(f"\n{section.heading}\n{section.note}\n\n{as_text(section.rows)}", flush=True)

    preset, started = PRESETS[options.preset], time.perf_counter()
    report, parts = Report(preset.title, {}), []
    for study in _studies(options, dataset, prompts):
        parts.append(preset.run(study))
        report.facts.update(_facts(study, options))
        show(parts[-1])
    if preset.compare is not None and len(parts) > 1:
        parts.append(preset.compare(parts))
        show(parts[-1])
    report.sections = [section for part in parts for section in part]
    report.facts["seconds in all"] = f"{time.perf_counter() - started:.0f}"
    file = report.write(out)
    print(f"\nwritten to {file}", file=sys.stderr)
    return 0


def _tune(options: argparse.Namespace) -> int:
    from phs_milvus.evaluation.report import as_text
    from phs_milvus.evaluation.tune import tune, write
    from phs_milvus.search.settings import is_settings

    if len(_places(options)) > 1:
        raise PhsError(
            "settings are for one model: run tune once for each --model or --encoder, each with its own --out"
        )
    dataset, prompts = _checked(options)
    output_file(options.out, "out", is_settings)
    for study in _studies(options, dataset, prompts):
        choice = tune(study)
        print(as_text(choice.rows))
        print(f"\ncross-validated {study.metric} of choosing: {choice.quality:.3f} ± {choice.error:.3f}")
        print(f"difference to whole image: {choice.gain}\n\n{as_text(choice.candidate_rows)}")
        print(f"\nrecommended: {_flags(choice.setting)}, {choice.candidates or 'the default number of'} candidates")
        write(choice, study, options.out)  # last: what is printed is not lost where it cannot be written
        model = "".join(f" --model {model}" for model in options.model)
        print(f"written to {options.out}: phs-milvus search IMAGE --settings {options.out}{model}", file=sys.stderr)
    return 0


def _flags(setting: Any) -> str:
    """A setting as the flags of `phs-milvus search`."""
    focus = setting.focus
    ann_heads = focus.heads_on if focus.ann_heads is None else focus.ann_heads
    heads = "" if focus.heads_on is None else f"--heads {focus.heads_on} --ann-heads {ann_heads} "
    zooms = ",".join(f"{zoom:g}" for zoom in focus.zooms)
    return f"{heads}--roi {focus.attention_shift:g} --zoom {zooms} --score {setting.score}"


def _checked(options: argparse.Namespace) -> tuple[Any, tuple[str, ...]]:
    """The dataset and the kinds of prompts, read and tried before hours of encoding."""
    from phs_milvus.evaluation import load
    from phs_milvus.evaluation.datasets import DatasetWarning
    from phs_milvus.evaluation.queries import PROMPTS
    from phs_milvus.milvus.connection import close, connect

    prompts = tuple(options.prompt.split(","))
    if unknown := set(prompts) - set(PROMPTS):
        raise InvalidInput(f"{', '.join(sorted(unknown))} is not one of {', '.join(PROMPTS)}", "prompt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)  # the remarks are printed below
        dataset = load(
            options.dataset, images=options.images, format=options.format, boxes=options.boxes, frame=options.frame
        )
    _say(dataset.remarks)
    if options.limit is not None:
        if options.limit < 1:
            raise InvalidInput(f"must be at least 1, got {options.limit}", "limit")
        dataset = replace(dataset, images=dataset.images[: options.limit])
    if options.queries is not None and options.queries < 1:
        raise InvalidInput(f"must be at least 1, got {options.queries}", "queries")
    if options.seed < 0:
        raise InvalidInput(f"must be at least 0, got {options.seed}", "seed")
    if options.milvus:
        close(connect(options.milvus, options.token))
    return dataset, prompts


def _studies(options: argparse.Namespace, dataset: Any, prompts: tuple[str, ...]) -> Iterator[Any]:
    """One Study for each model, its server running while it is in use."""
    from phs_milvus.evaluation.experiments import Study
    from phs_milvus.evaluation.painting import paintable
    from phs_milvus.evaluation.queries import evenly, object_queries

    for place in _places(options):
        with ExitStack() as stack:
            encoder = stack.enter_context(open_encoder(place))
            bench = stack.enter_context(_bench(encoder, dataset, options))
            every = object_queries(bench.dataset)
            if not every:
                raise InvalidInput("no image has objects of two classes, so there is no query", "dataset")
            queries, left_out, boxed = paintable(every, prompts, bench.dataset, bench.sizes)
            _say_queries(len(every), left_out, boxed)
            if not queries:
                raise InvalidInput(f"none of the {len(every)} queries can be pointed at; {left_out[0]}", "dataset")
            yield Study(bench, evenly(queries, options.queries), prompts, options.seed, left_out)


@contextmanager
def _bench(encoder: Any, dataset: Any, options: argparse.Namespace) -> Iterator[Any]:
    from phs_milvus.evaluation import Bench, Store
    from phs_milvus.evaluation.datasets.model import listed
    from phs_milvus.evaluation.readable import readable

    with Store(options.cache, encoder.info) as store:
        started = time.perf_counter()
        known, dataset = dataset.unreadable, readable(dataset, encoder, store)
        problems = [text for name, text in dataset.unreadable.items() if name not in known]
        _say(listed(f"left out: {len(problems)} image(s) that cannot be used", problems))
        bench = Bench(encoder, dataset, store, milvus=options.milvus, token=options.token)
        bench.seconds["encoding images"] += time.perf_counter() - started
        try:
            yield bench
        finally:
            bench.close()


def _with_reasons(problems: Sequence[str]) -> str:
    from phs_milvus.evaluation.datasets.model import NAMED

    more = "; ..." if len(problems) > NAMED else ""
    return f"{len(problems)} ({'; '.join(problems[:NAMED])}{more})" if problems else "none"


def _about_labels(dataset: Any) -> list[str]:
    skipped = [f"{len(dataset.skipped)} annotation(s) left out, which could not be used"] if dataset.skipped else []
    return [*dataset.notes, *skipped]


def _say_queries(count: int, left_out: list[str], boxed: list[str]) -> None:
    from phs_milvus.evaluation.datasets.model import counted, listed

    _say(listed(f"left out: {len(left_out)} of {count} queries, which cannot be pointed at", left_out))
    if boxed:
        _say([f"for {counted(boxed)} the box's centre stands in for that of a broken outline"])


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _places(options: argparse.Namespace) -> list[argparse.Namespace]:
    """The models to use: running servers, then models to serve here; with neither, PHS_ENCODER or the default model."""
    places = [argparse.Namespace(encoder=address, model=None) for address in options.encoder]
    places += [argparse.Namespace(encoder=None, model=model) for model in options.model]
    return places or [argparse.Namespace(encoder=None, model=None)]


def _facts(study: Any, options: argparse.Namespace) -> dict[str, str]:
    from phs_milvus.evaluation.datasets.model import counted

    info, bench = study.bench.info, study.bench
    left_out = {"without a file": bench.dataset.missing, "not readable": tuple(bench.dataset.unreadable)}
    spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in sorted(bench.seconds.items()))
    return {
        "dataset": f"{bench.dataset.name}, {len(bench.dataset.images)} images, {len(study.queries)} queries from "
        f"{len({query.image for query in study.queries})} images, {len(bench.dataset.labels)} classes",
        f"model {study.model}": f"{info.heads} heads, D={info.hidden_size}, {info.image_size} px, "
        f"{info.grid_height}x{info.grid_width} patches, {info.precision}, h_on {info.default_heads}, "
        f"fingerprint {info.fingerprint[:12]}",
        "labels": "; ".join(_about_labels(bench.dataset)) or "all used as they are",
        "left out": "; ".join(f"{counted(ids)} {why}" for why, ids in left_out.items() if ids) or "no image",
        "queries left out": _with_reasons(study.left_out),
        "prompts": ", ".join(study.prompts),
        "seed": str(options.seed),
        f"time, {study.model}": f"{spent} ({os.cpu_count()} cores, what was cached not counted)",
    }
