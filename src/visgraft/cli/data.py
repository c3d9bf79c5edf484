"""`visgraft data`: checks a detection data set, or writes the embedded scenes."""

from argparse import Namespace, _SubParsersAction
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = ["add_command"]


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "data",
        help="check a detection data set, or write the embedded scenes",
        description="Checks a detection data set before training, or writes `fashion_scenes`.",
        epilog="example: visgraft data check coco/annotations/instances_val2017.json",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    check = actions.add_parser(
        "check",
        help="name all that has to be mended in a data set",
        description="Reads annotations and pictures as training would, and names all that has to "
        "be mended, with file and id. The exit status is 1 if there is something.",
        epilog="example: visgraft data check coco/annotations/instances_val2017.json "
        "--images coco/val2017",
    )
    check.add_argument(
        "path", metavar="PATH", help="COCO json, YOLO data.yaml, or a folder (VOC's xml too)"
    )
    check.add_argument("--images", metavar="FOLDER", help="pictures of a COCO json")
    check.set_defaults(run=_check, parser=check)

    scenes = actions.add_parser(
        "scenes",
        help="write fashion_scenes as COCO json and PNG",
        description="Writes scenes of garments with exact boxes and masks, as COCO json and PNG, "
        "the same bytes each time.",
        epilog="example: visgraft data scenes scenes --images 200 --seed 0",
    )
    scenes.add_argument("folder", metavar="FOLDER", help="must not exist, or be empty")
    scenes.add_argument("--images", type=int, default=200, help="to train on (default: 200)")
    scenes.add_argument("--val-images", type=int, default=50, help="to measure on (default: 50)")
    scenes.add_argument("--seed", type=int, default=0, help="of the scenes (default: 0)")
    scenes.set_defaults(run=_scenes, parser=scenes)


def _check(args: Namespace) -> int:
    from visgraft.data.detection import check_detection

    with _bar_per_part("reading images") as count:
        parts = check_detection(args.path, args.images, progress=count)
    for part in parts:
        print(f"{part.source}: {part.format}")
        if part.data is not None:
            data = part.data
            masks = sum(item.mask is not None for image in data.images for item in image.objects)
            crowds = sum(item.is_crowd for image in data.images for item in image.objects)
            print(
                f"  usable: {len(data)} images, {data.num_objects} objects ({masks} with masks, "
                f"{crowds} crowds), {len(data.classes)} classes"
            )
        for note in part.notes:
            print(f"  note: {note}")
        for problem in part.problems:
            print(f"  mend: {problem}")
    count = sum(len(part.problems) for part in parts)
    print(f"{count} to mend" if count else "nothing to mend")
    return 1 if count else 0


@contextmanager
def _bar_per_part(text: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total) that shows a new bar where the count begins anew."""
    from visgraft.tasks.progress import counting_bar

    with ExitStack() as bars:
        count: Callable[[int, int], None] | None = None
        last = (0, 0)

        def show(done: int, total: int) -> None:
            nonlocal count, last
            if count is None or done <= last[0] or total != last[1]:
                bars.close()
                count = bars.enter_context(counting_bar(text))
            count(done, total)
            last = (done, total)

        yield show


def _scenes(args: Namespace) -> None:
    from visgraft.data.detection import fashion_scenes, write_coco

    train, val = fashion_scenes(
        train_images=args.images, val_images=args.val_images, seed=args.seed
    )
    folder = Path(args.folder)
    with _bar_per_part("writing pictures") as count:
        write_coco(folder, {"train": train, "val": val}, progress=count)
    for part, data in (("train", train), ("val", val)):
        print(
            f"{folder / 'annotations' / f'instances_{part}.json'}: {len(data)} images, "
            f"{data.num_objects} objects"
        )
