"""What ``rankfold recover`` prints and says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankfold.cli.printing import count, print_table

if TYPE_CHECKING:
    from rankfold.recover import MappedEntries, Triplets
    from rankfold.run.progress import Talk


def print_recovered(report: dict[str, Any]) -> None:
    from rankfold.report.recovery import completed_told, learnt_from  # slow: with pictures

    rank = report["rank"]
    how = report["how"].removeprefix(f"rank {rank}; ")
    if "tried" in report:
        lines = [(one["choice"], f"{one['error']:.4f}", str(one["rank"])) for one in report["tried"]]
        print_table(("choice", "held-out RMSE", "rank"), lines)
        error, learnt = report["held_out_error"], learnt_from(report["folds"])
        print(f"\nchosen: {report['chosen']}, root mean square error {error:.4f} on held-out entries, {learnt}")
        if "expected_error" in report:
            print(f"expected error of a new cell: {report['expected_error']:.4f}, by the fit to all entries")
        elif "test" not in report:
            nearer = "more --folds come nearer to its error, and " if report["folds"] > 1 else ""
            print(f"the fit to all entries knows more, and may err less: {nearer}--test FILE measures it")
        other = report["tried"][0]["rank"]
        more = (
            ""
            if other == rank
            else f" (the table has {other}, the rank of the last fold, which was fitted to fewer entries)"
        )
        print(f"fitted to all {count(report['entries'])} entries: rank {rank}{more}; {how}")
        if "%" in how:
            print(
                "(there, % are of the root mean square of the values, and held out is what the search for the rank "
                "of this fit left out, which knew nearly all others; the error above is that of the folds)"
            )
    else:
        error = report["held_out_error"]
        held = "none needed" if error is None else f"{error:.2g}"
        print(f"rank {rank}, {'converged' if report['converged'] else 'NOT converged'}: {how}")
        print(f"relative residual {report['residual']:.2g}; relative held-out error {held}")
    if "advice" in report:
        print(report["advice"])
    if "test" in report:
        test = report["test"]
        print(
            f"on {count(test['entries'])} test entries: root mean square error {test['error']:.4f}, absolute "
            f"{test['absolute_error']:.4f}; {_unknown(test)}"
        )
    if "predicted" in report:
        told = report["predicted"]
        some = told["unknown_rows"] or told["unknown_columns"]
        marked = ", and marked as unknown in predictions.csv" if some else ""
        print(f"predicted {count(told['pairs'])} pairs: {_unknown(told)}{marked}")
        if report["method"] != "ratings":
            print(f"predictions.csv has no uncertainty, which only ratings tell: {report['method']} was chosen")
    if "top_cut" in report:
        many, end = count(report["top_cut"]["predictions"]), report["top_cut"]["to"]
        print(f"top.csv: {many} predictions are cut to {end:g}, and in the order that they have uncut")
    if "completed" in report:
        print(completed_told(report))
    print(f"wrote {report['directory']}")


def _unknown(told: dict[str, Any]) -> str:
    """How many rows and columns the fit has never seen."""
    numbers = {"row": told["unknown_rows"], "column": told["unknown_columns"]}
    said = [f"{number} {what}{'s' * (number > 1)}" for what, number in numbers.items() if number]
    if not said:
        return "all their rows and columns are known"
    return f"{' and '.join(said)} unknown, predicted like average ones"


def _sure(difference: float, error: float | None) -> str:
    if error is None:
        return ", of a single row, which is too few to compare"
    told = "ahead" if difference > 2 * error else "behind" if difference < -2 * error else "too close to tell apart"
    return f" ± {error:.4f}, {told}"


def print_ranked(report: dict[str, Any]) -> None:
    k, last = report["k"], {"by-time": "the latest tenth", "leave-one-out": "one entry of each row"}[report["split"]]

    def line(one: dict[str, Any]) -> tuple[str, ...]:
        return (one["choice"], f"{one['ndcg']:.4f}", f"{one['recall']:.4f}", f"{one['map']:.4f}")

    head = (f"NDCG@{k}", f"recall@{k}", f"MAP@{k}")
    print_table(("tried on the part before the last", *head), [line(one) for one in report["tried"]])
    print(f"\non {last}, not seen before ({count(report['tested'][0]['rows'])} rows):\n")
    print_table(("fitted to all that is earlier", *head), [line(one) for one in report["tested"]])
    for one in report["ahead"]:
        print(f"\nagainst {one['of']}: NDCG {one['ndcg']:+.4f}{_sure(one['ndcg'], one['standard_error'])}", end="")
    print(f"\n\nchosen: {report['chosen']}")
    if "advice" in report:
        print(report["advice"])
    print(f"wrote {report['directory']}")


def say_read(entries: Triplets | MappedEntries, talk: Talk, *beside: tuple[Path | None, Triplets | None]) -> None:
    """What was read, of the files ``beside`` too, whose columns may have been taken for others."""
    m, n = entries.shape
    talk.say(f"{count(len(entries))} entries of a {count(m)} × {count(n)} matrix, {len(entries) / (m * n):.2%} of it")
    for remark in entries.remarks:
        talk.say(remark)
    for file, found in beside:
        if file is not None and found is not None:
            for remark in found.remarks:
                talk.say(f"{file.name}: {remark}")


def say_warning(report: dict[str, Any], talk: Talk) -> None:
    """Of an error on test entries that says less than it seems to."""
    if (told := report.get("test", {}).get("warning")) is not None:
        talk.say(f"warning: {told}")
