"""What a recovery says of its figures and of names it does not know, and what it leaves in its directory."""

import json
import re
import threading

import numpy as np
import pandas as pd
import pytest
from commands import failed, rankfold, succeeded

from rankfold.pipeline.recovery.advice import other_ranks, other_settings
from rankfold.pipeline.recovery.completing import expected_error
from rankfold.pipeline.recovery.writing import predictions
from rankfold.recover import (
    Candidate,
    Choice,
    ImplicitFeedback,
    Ratings,
    Tried,
    fit,
    load,
    map_entries,
    read_triplets,
    triplets,
)
from rankfold.report.recovery import RecoveryData, render_recovery
from rankfold.run.claim import claimed

PAIRS = [(f"u{u:02}", f"i{i:02}") for u in range(30) for i in range(20) if (7 * u + 3 * i) % 5 < 3]


def rating(row, column):
    return 1 + (int(row[1:]) + int(column[1:])) % 5


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    file = tmp_path_factory.mktemp("ratings") / "ratings.csv"
    file.write_text("user,item,rating\n" + "".join(f"{u},{i},{rating(u, i)}\n" for u, i in PAIRS))
    return file


@pytest.fixture(scope="module")
def done(table, tmp_path_factory):
    """A run with everything: its directory, report and words."""
    out, asked = tmp_path_factory.mktemp("done"), table.with_name("asked.csv")
    asked.write_text("user,item\nu00,i00\nu01,i01\nnobody,i01\nnobody,nothing\n")
    given = (
        table,
        "--methods",
        "ratings",
        "--ranks",
        "1,2",
        "--folds",
        "2",
        "--top",
        "1",
        "--predict",
        asked,
        "-o",
        out,
    )
    result = rankfold("recover", *given)
    assert result.exit_code == 0, result.stderr
    return out, json.loads((out / "recover.json").read_text()), result.stdout


def test_the_error_of_a_new_cell_is_told_beside_that_of_the_folds(done):
    out, report, told = done
    assert report["folds"] == 2
    assert report["expected_error"] > 0
    assert f"expected error of a new cell: {report['expected_error']:.4f}, by the fit to all entries" in told
    assert "no uncertainty" not in told
    assert f"error {report['held_out_error']:.4f} on held-out entries, of fits to 1 of 2 parts of the entries\n" in told
    assert "(root mean square), of fits to 1 of 2 parts of the entries" in (out / "report.html").read_text()


def test_what_ratings_alone_tell_is_missed_in_words(table, tmp_path):
    asked = tmp_path / "asked.csv"
    asked.write_text("user,item\nu00,i00\n")
    given = (
        "recover",
        table,
        "--methods",
        "low-rank",
        "--ranks",
        "2",
        "--folds",
        "2",
        "--predict",
        asked,
        "-o",
        tmp_path,
    )
    told = rankfold(*given).stdout
    assert "predictions.csv has no uncertainty, which only ratings tell: low-rank was chosen" in told
    assert "of fits to 1 of 2 parts of the entries\nthe fit to all entries knows more, and may err less" in told


def test_the_error_of_a_new_cell_is_right_where_the_model_is():
    rng = np.random.default_rng(3)
    rows, columns = np.nonzero(rng.random((120, 80)) < 0.5)
    bias, taste = rng.standard_normal(120), rng.standard_normal(80)
    values = bias[rows] + taste[columns] + 0.5 * rng.standard_normal(len(rows))
    new = rng.random(len(rows)) < 0.2
    told = triplets(rows[~new], columns[~new], values[~new], shape=(120, 80))
    model, _, _ = fit(told, Choice("ratings", 2))
    real = np.sqrt(np.mean((model.at(rows[new], columns[new]) - values[new]) ** 2))
    assert expected_error(model, told) == pytest.approx(real, rel=0.05)
    assert expected_error(fit(told, Choice("low-rank", 1))[0], told) is None


def test_names_that_are_unknown_are_counted(done):
    _, report, told = done
    assert report["predicted"] == {"pairs": 4, "unknown_rows": 1, "unknown_columns": 1}
    said = "predicted 4 pairs: 1 row and 1 column unknown, predicted like average ones, and marked as unknown in pre"
    assert said in told


def test_predictions_of_unknown_names_are_marked_and_keep_their_digits(done, tmp_path):
    lines = [line.split(",") for line in (done[0] / "predictions.csv").read_text().splitlines()]
    assert lines[0] == ["user", "item", "predicted", "uncertainty", "unknown"]
    assert [line[-1] for line in lines[1:]] == ["", "", "row", "row and column"]
    small = triplets(*zip(*[(u, i, 1e-7 * rating(u, i)) for u, i in PAIRS], strict=True))
    model, _, _ = fit(small, Choice("low-rank", 1))
    written = predictions(model, small.take(np.arange(3)), ("user", "item")).decode().splitlines()
    assert written[0] == "user,item,predicted"
    assert float(written[1].split(",")[2]) == pytest.approx(model.at(small.rows[:1], small.columns[:1])[0], rel=1e-6)


def test_equal_predictions_are_told_to_be_in_the_order_that_they_have_uncut(done):
    out, report, told = done
    values = [line.split(",")[2] for line in (out / "top.csv").read_text().splitlines()[1:]]
    assert values.count("5") == report["top_cut"]["predictions"] > 1
    assert f"{values.count('5')} predictions are cut to 5, and in the order that they have uncut" in told


def test_side_tables_at_the_best_rank_of_plain_ratings_are_advised():
    def one(rank, error, sides=False):
        return Tried(Choice("ratings", rank, sides=sides), error, (error,), rank, "")

    for order in ([one(5, 1.0), one(10, 1.1, True), one(10, 1.2)], [one(10, 0.9, True), one(5, 1.0), one(10, 1.2)]):
        told = other_ranks(order, 50)
        assert told.startswith("ratings with side tables were tried at rank 10 alone"), told
        assert "--ranks 5 tries all there" in told
    assert "side tables" not in other_ranks([one(5, 1.0), one(5, 1.1, True)], 50)


def test_what_shares_and_held_out_mean_in_the_sentence_on_a_fit_is_said(tmp_path):
    rng = np.random.default_rng(0)
    values = 20 + np.outer(rng.standard_normal(25), rng.standard_normal(20)) + 0.3 * rng.standard_normal((25, 20))
    file = tmp_path / "list.csv"
    file.write_text("a,b,value\n" + "".join(f"{i},{j},{v}\n" for (i, j), v in np.ndenumerate(values)))
    given = ("--methods", "low-rank", "--ranks", "2", "--folds", "2", "-o", tmp_path / "out")
    told = rankfold("recover", file, *given).stdout
    assert "% of their size" in told
    assert "% are of the root mean square of the values, and held out is what the search" in told


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("item,user\ni00,u00\n", None),  # named by its header: nothing is swapped
        ("a,b\ni00,u00\ni01,u01\n", "rows and columns are swapped"),
        ("user,item\nU00,i00\n", "they differ in capitals"),
        ("user,item\n1,i00\n", "is line 1 a header in both"),
    ],
)
def test_names_of_which_none_is_known_are_refused(table, tmp_path, asked, hint):
    file = tmp_path / "asked.csv"
    file.write_text(asked)
    given = ("recover", table, "--methods", "low-rank", "--folds", "2", "--predict", file, "-o", tmp_path / "out")
    if hint is None:
        succeeded(*given)
    else:
        assert hint in failed(*given)


def test_leading_zeros_are_named(tmp_path):
    (tmp_path / "r.csv").write_text("user,item,rating\n" + "".join(f"0{i},a{i % 3},{i % 4}\n" for i in range(1, 9)))
    (tmp_path / "t.csv").write_text("user,item,rating\n1,a1,3\n2,a1,3\n")
    told = failed("recover", tmp_path / "r.csv", "--test", tmp_path / "t.csv", "-o", tmp_path / "out")
    assert "none of the 2 rows to judge by is among the entries, such as '1', where those are such as '01'" in told
    assert "leading zeros" in told
    (tmp_path / "p.csv").write_text("user,item\n01,a1\n")
    told = failed("recover", tmp_path / "r.csv", "--test", tmp_path / "p.csv", "-o", tmp_path / "out")
    assert "pairs without values cannot judge a result" in told
    assert "predict the pairs with --predict" in told


def test_what_an_earlier_run_wrote_and_this_one_does_not_is_removed(done, table):
    out, report, _ = done
    assert {"top.csv", "predictions.csv"} < set(report["files"])
    (out / "mine.csv").write_text("kept")
    failed("recover", table.with_name("none.csv"), "-o", out)
    assert (out / "top.csv").exists()  # nothing took its place
    report = succeeded("recover", table, "--methods", "low-rank", "--ranks", "2", "--folds", "2", "-o", out)
    assert sorted(path.name for path in out.iterdir()) == sorted([*report["files"], "recover.json", "mine.csv"])
    assert not (out / "top.csv").exists()
    succeeded("recover", table, "--implicit", "--methods", "popularity", "-o", out)
    assert sorted(path.name for path in out.iterdir()) == ["mine.csv", "recover.json", "top.csv"]


def test_two_runs_in_one_directory_do_not_mix(table, tmp_path):
    held, free = threading.Event(), threading.Event()

    def other():
        with claimed(tmp_path / "out", what="recover"):
            held.set()
            free.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(30)
    told = failed("recover", table, "--methods", "low-rank", "-o", tmp_path / "out")
    free.set()
    thread.join()
    assert "(recover)" in told
    assert not (tmp_path / "out" / "recover.json").exists()


def tried(best, *ranks, method="ratings"):
    return [Tried(Choice(method, rank), 1.0, (1.0, 1.0), rank, "") for rank in (best, *ranks)]


def test_a_rank_at_the_edge_is_told():
    assert "rank 4 is the smallest that was tried, and another one below 8" in other_ranks(tried(4, 8), 99)
    assert other_ranks(tried(4, 8), 99).endswith("--ranks 1,2,4,5,7,8")
    assert other_ranks(tried(8, 4), 99).endswith("--ranks 4,5,7,8,16")
    assert other_ranks(tried(8, 4), 9).endswith("--ranks 4,5,7,8,9")  # what the matrix can have
    assert "others between 2 and 8" in other_ranks(tried(4, 2, 8), 99)
    for done in (tried(4), tried(1, 2), tried(4, 3, 5), tried(4, 3), tried(4, 8, method="low-rank")[:1]):
        assert other_ranks(done, 4) == ""


@pytest.mark.parametrize("best", [1, 3, 4, 7, 11, 33])
def test_doing_as_the_advice_on_ranks_says_ends_at_the_best_one(best):
    ranks, rounds = {5, 10, 20}, 0
    while (told := other_ranks(tried(*sorted(ranks, key=lambda rank: (abs(rank - best), rank))), 60)) and rounds < 9:
        ranks, rounds = set(map(int, told.rpartition(" ")[2].split(","))), rounds + 1
    assert best in ranks
    assert rounds <= 5


def test_a_setting_at_the_edge_is_told_of_what_was_taken(tmp_path):
    given = [Candidate("regression", regularization=weight) for weight in (1500.0, 50.0, 500.0)]
    assert "regularization 1500 is the largest that was tried of regression, and 4500 may" in other_settings(given)
    assert "regularization 50 is the smallest" in other_settings(given[1:])
    assert (
        other_settings([given[2], *given])
        == other_settings(given[:1])
        == other_settings([Candidate("popularity")])
        == ""
    )
    of_als = [Candidate("als", 16, 1.0, 10.0), Candidate("als", 64, 1.0, 1.0), Candidate("als", 64, 1.0, 30.0)]
    assert other_settings(of_als).startswith("rank 16 is the smallest that was tried of als, and 5 may")
    file = tmp_path / "plays.csv"
    file.write_text("user,item\n" + "".join(f"u{u},i{(u + k * k) % 9}\n" for u in range(30) for k in range(4)))
    given = ("recover", file, "--implicit", "--methods", "regression", "-o", tmp_path / "out")
    assert "best" not in succeeded(*given).get("advice", "")
    advice = json.loads((tmp_path / "out" / "recover.json").read_text()).get("advice")
    assert advice is None or advice in rankfold(*given).stdout


def test_a_saved_result_predicts_again(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path)
    table = triplets(["a", "a", "b"], ["x", "y", "x"], [1.0, 2.0, 3.0])
    model, _, _ = fit(table, Choice("low-rank", 1))
    (tmp_path / "factors.safetensors").write_bytes(model.to_bytes())
    for place in (tmp_path, tmp_path / "factors.safetensors"):
        assert (
            load(place).predict(["b", "new"], ["y", "y"]).tolist() == model.predict(["b", "new"], ["y", "y"]).tolist()
        )


def test_ratings_that_say_less_than_they_seem_to_are_warned_of():
    pairs = [[u, i] for u, i in PAIRS]
    model = Ratings(1, burn_in=3, draws=5).fit(pairs, [rating(u, i) for u, i in PAIRS])
    with pytest.warns(UserWarning, match=r"1 of 2 ratings are of columns that the fit did not know, such as strange,"):
        model.partial_fit([["new", "i00"], ["new", "strange"]], [4.0, 3.0])
    with pytest.warns(UserWarning, match=r"1 of 1 ratings, such as 40, are outside the scale of the fit, 1 to 5"):
        model.partial_fit([["newer", "i00"]], [40.0])


def test_a_row_of_unknown_columns_gets_popularity():
    plays = [("ann", "z"), ("bob", "z"), ("cid", "z"), ("ann", "m"), ("bob", "m"), ("cid", "a")]
    model = ImplicitFeedback("regression", regularization=1.0).fit(plays)
    model.partial_fit([("new", "unknown")])
    assert model.recommend("new", 3) == [("z", 3.0), ("m", 2.0), ("a", 1.0)]
    for asked in (model.recommend, model.similar):
        with pytest.raises(ValueError, match="count must be at least 1, got -5"):
            asked("z" if asked == model.similar else "new", -5)


def test_every_way_has_a_line_of_its_own_and_ranks_are_whole_numbers():
    ways = ("ratings", "ratings with time", "ratings with side tables", "ratings with time and side tables")
    tried = [(f"{way}, rank 10", "ratings", 10, 0.5 + 0.01 * n, (0.5, 0.6)) for n, way in enumerate(ways)]
    tried.append(("low-rank, rank 10", "low-rank", None, 0.6, (0.6, 0.6)))
    page = render_recovery(RecoveryData("t", (), (), tried, np.linspace(-1, 1, 50), "all 50 entries", ()))
    picture = page[page.index("Held-out error against rank") :][: page.index("Residuals")]
    picture = picture[: picture.index("</svg>")]
    assert all(f"series-{number}" in picture for number in range(1, 6))
    assert ">10<" in picture
    assert "9." not in "".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture))


@pytest.mark.parametrize(
    ("head", "called"),
    [
        ("viewer,film,stars", "viewer,film"),
        ("stars,film,viewer", "viewer,film"),
        ("", "row,column"),
        ("predicted,place,rating", "row,column"),  # beside a column of ours of that name
    ],
)
def test_results_are_called_as_in_the_file(tmp_path, head, called):
    turned = head.startswith("stars")
    lines = [(rating(u, i), i, f'"{u}, of"') if turned else (f'"{u}, of"', i, rating(u, i)) for u, i in PAIRS]
    file, asked, out = tmp_path / "r.csv", tmp_path / "asked.csv", tmp_path / "out"
    file.write_text("\n".join(([head] if head else []) + [",".join(map(str, line)) for line in lines]) + "\n")
    asked.write_text(
        (called if head.startswith(("v", "s")) else "predicted,place" if head else "").strip() + '\n"u00, of",i00\n'
    )
    given = ("--methods", "low-rank", "--ranks", "3", "--folds", "2", "--top", "1", "--predict", asked, "-o", out)
    done = succeeded("recover", file, *given)
    assert done["file"] == "r.csv"
    assert done["chosen"] == "low-rank, up to rank 3"
    page = (out / "report.html").read_text()
    assert "<dt>File</dt><dd>r.csv</dd>" in page
    for name in ("top.csv", "predictions.csv"):
        first, second = (out / name).read_text().splitlines()[:2]
        assert first == f"{called},predicted"
        assert second.startswith('"u00, of",i')
        assert f"<h2>{name}</h2>" in page
    assert "<td>u00, of</td>" in page


def test_results_of_other_files_are_called_as_there(tmp_path):
    file = tmp_path / "wide.csv"
    file.write_text("sensor,A,B,C\ns0,1,2,4\ns1,2,4,\ns2,3,6,12\n")
    assert read_triplets(file).called == ("sensor", "column")
    pd.DataFrame({"who": ["a", "b"], "what": ["x", "y"], "value": [1.0, 2.0]}).to_parquet(tmp_path / "e.parquet")
    assert read_triplets(tmp_path / "e.parquet").called == ("who", "what")
    for _ in range(2):  # made, and taken again
        assert map_entries(tmp_path / "e.parquet", tmp_path / "entries").called == ("who", "what")
