"""Tables of docs/performance.md: networks in images per second, and other layouts and dtypes."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

__all__ = ["compiled_table", "is_plain", "network_table", "profile_table", "table", "variant_table"]

_FORWARD = "forward"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def is_plain(document: dict[str, Any]) -> bool:
    """Whether a document has float32 maps in the usual layout, and nothing compiled."""
    records = [record for run in document["runs"] for record in run["records"]]
    return all(
        record["dtype"] == "float32"
        and not record["channels_last"]
        and "graph_breaks" not in record
        for record in records
    )


def network_table(documents: Iterable[dict[str, Any]]) -> str:
    """Returns images per second and memory of networks, from documents that hold any."""
    rows = []
    for document in documents:
        for run in document["runs"]:
            for record in run["records"]:
                if run["allocator"] == "tuned" and record["shape"][1] == 3:
                    rows += _network_rows(record)
    header = ("network", "step", "images", "form", "images per second", "time", "MiB")
    return table(header, rows)


def _network_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    batch = record["shape"][0]
    return [
        (
            record["case"],
            "inference" if record["step"] == _FORWARD else "training",
            str(batch),
            name,
            f"{batch / timing['seconds']:.2f}",
            f"{timing['ratio']:.2f}",
            f"{timing['peak_memory'] / 2**20:.0f}",
        )
        for name, timing in record["timings"].items()
    ]


def variant_table(document: dict[str, Any]) -> str:
    """Returns how our forms and the baselines do in another layout or dtype than before."""
    rows = []
    for record in (record for run in document["runs"] for record in run["records"]):
        timings, ours, baseline = record["timings"], record["ours"], record["baseline"]
        rows.append(
            (
                record["case"],
                " x ".join(map(str, record["shape"])),
                record["step"],
                f"{1e3 * timings[ours]['seconds']:.2f}",
                _against_before(timings, ours),
                _against_before(timings, baseline),
                f"{timings[ours]['ratio']:.2f}",
                _memory_against_before(timings, ours),
            )
        )
    header = ("case", "map", "step", "ms", "to itself before", "baseline to itself before")
    return table((*header, "to the baseline", "memory to itself before"), rows)


def _before(timings: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Returns the timing of a form as it was before its layout or dtype changed."""
    for label in ("contiguous", "float32", "contiguous float32"):
        if f"{name}, {label}" in timings:
            return timings[f"{name}, {label}"]
    return None


def _against_before(timings: dict[str, Any], name: str) -> str:
    before = _before(timings, name)
    if before is None:
        return "-"
    pairs = zip(timings[name]["readings"], before["readings"], strict=True)
    return f"{median(own / its for own, its in pairs):.2f}"


def _memory_against_before(timings: dict[str, Any], name: str) -> str:
    before = _before(timings, name)
    if before is None:
        return "-"
    return f"{timings[name]['peak_memory'] / before['peak_memory']:.2f}"


def compiled_table(document: dict[str, Any]) -> str:
    """Returns how our forms and those that circulate do through the compiler."""
    rows = []
    for record in (record for run in document["runs"] for record in run["records"]):
        timings, ours = record["timings"], record["ours"]

        def to_ours(name: str, timings: Any = timings, ours: str = ours) -> str:
            if name not in timings:
                return "-"
            pairs = zip(timings[name]["readings"], timings[ours]["readings"], strict=True)
            return f"{median(other / own for other, own in pairs):.2f}"

        rows.append(
            (
                record["case"],
                " x ".join(map(str, record["shape"])),
                record["step"],
                f"{1e3 * timings[ours]['seconds']:.2f}",
                to_ours(f"{ours}, compiled"),
                to_ours("circulating"),
                to_ours("circulating, compiled"),
                str(record["graph_breaks"][f"{ours}, compiled"]),
            )
        )
    header = ("case", "map", "step", "ms", "compiled", "circulating", "circulating, compiled")
    return table((*header, "graph breaks"), rows)


def profile_table(document: dict[str, Any]) -> str:
    """Returns the operators in which blocks spend their time."""
    rows = []
    for one in document["profiles"]:
        spent = [f"`{name}` {share:.0%}" for name, share in one["shares"].items()]
        shape = " x ".join(map(str, one["shape"]))
        rows.append((one["case"], shape, f"{one['ratio']:.2f}", ", ".join(spent)))
    return table(("block", "map", "to conv3x3", "operators and their share of the time"), rows)
