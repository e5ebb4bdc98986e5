"""EAGLE from the prediction (MTP) layer: right answers to the word, and drafts that are accepted.

Each flavour is started plainly, and with drafts. ``support/speculation.py`` has the prompts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.support import engines, metrics, recall_model, speculation
from tests.serving.support.engines import Job, Served
from tests.serving.support.flavours import FLAVOURS
from tests.serving.support.speculation import EAGLE, LENGTHS, NEW_TOKENS, NOISE, SEEDS, Runs

NAMES = tuple(FLAVOURS)
FORKS = [name for name, flavour in FLAVOURS.items() if flavour.site == "fork"]


def jobs(model: Path, twin: Path) -> list[Job]:
    """``twin`` has the same weights in bf16."""
    return [
        Job(
            f"{name}{kind}",
            flavour,
            engines.arguments(flavour, twin if flavour.bf16 else model, **changes),
            speculation.steps(),
        )
        for name, flavour in FLAVOURS.items()
        for kind, changes in (("", {}), ("-eagle", EAGLE))
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    if missing := engines.missing_sites():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("speculation")
    model = recall_model.write(folder / "model", recall_model.spec())
    twin = recall_model.write(folder / "twin", recall_model.spec(), bf16=True)
    return Runs(engines.serve(jobs(model, twin), folder, "speculation"))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["", "-eagle"])
@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_right_to_the_word(runs: Runs, name: str, kind: str) -> None:
    served = runs.served[f"{name}{kind}"]
    assert not served.problems(), served.why()
    assert not runs.wrong(f"{name}{kind}")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_drafts_are_accepted_and_refused(runs: Runs, name: str) -> None:
    """With no draft accepted a step would make one token, with all of them four."""
    assert runs.served[f"{name}-eagle"].result["resolved"]["speculative_algorithm"] == "EAGLE"
    made = {length: runs.accepted(name, length) for length in LENGTHS}
    assert max(made.values()) > 2.0, made
    assert min(made.values()) < 3.9, made


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORKS)
def test_as_many_drafts_are_accepted_as_by_stock(runs: Runs, name: str) -> None:
    ours, stock = (runs.mean_accepted(one) for one in (name, "stock"))
    assert abs(ours - stock) <= NOISE, {n: runs.accepted(name, n) for n in LENGTHS}


@pytest.mark.gpu
def test_the_figures(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """Write the tables. Fails only if a figure cannot be computed."""
    engines.show_figures(report(runs), "speculation", capsys)


def report(runs: Runs) -> str:
    """The figures as Markdown, of the flavours that answered."""
    rows = [
        [
            name,
            length,
            runs.accepted(name, length),
            runs.median_seconds(name, length),
            runs.median_seconds(f"{name}-eagle", length),
        ]
        for name in runs.answered(NAMES)
        for length in LENGTHS
    ]
    head = ["flavour", "prompt", "tokens a step", "s plainly", "s with drafts"]
    return "\n".join(
        [
            "### Tokens a step, and seconds for a prompt and 64 tokens\n",
            metrics.table(head, rows),
            "### Answers that are not right to the word\n",
            runs.report_answers(),
        ]
    )


# -- without a GPU --------------------------------------------------------------------------------


def made_up(job: Job, folder: Path, verified: int) -> Served:
    """A job whose every answer is right; ``verified`` steps for each."""
    folder.mkdir(parents=True)
    found = [
        {
            "name": step.name,
            "seconds": 0.5,
            "answers": [
                {"ids": recall_model.answer(prompt, step.new_tokens), "verified": verified}
                for prompt in step.prompts
            ],
        }
        for step in job.steps
    ]
    served = Served(job, folder, 0, 2.0)
    resolved = {"speculative_algorithm": "EAGLE"}
    served.__dict__["result"] = {"steps": found, "error": None, "resolved": resolved}
    return served


@pytest.fixture
def good(tmp_path: Path) -> Runs:
    return Runs(
        {job.name: made_up(job, tmp_path / job.name, 25) for job in jobs(tmp_path, tmp_path)}
    )


def test_a_wrong_word_is_found(good: Runs) -> None:
    test_every_answer_is_right_to_the_word(good, "fork", "-eagle")
    good.served["fork-eagle"].answer("3000-2")["ids"][9] += 1
    assert good.wrong("fork-eagle") == ["3000-2[0]: 9 of 64"]
    with pytest.raises(AssertionError):
        test_every_answer_is_right_to_the_word(good, "fork", "-eagle")


def test_drafts_that_nobody_accepts_are_found(good: Runs, tmp_path: Path) -> None:
    test_drafts_are_accepted_and_refused(good, "fork")
    test_as_many_drafts_are_accepted_as_by_stock(good, "fork")
    job = good.served["fork-eagle"].job
    for verified in (64, 16):  # no draft, and every draft
        bad = Runs({**good.served, "fork-eagle": made_up(job, tmp_path / str(verified), verified)})
        with pytest.raises(AssertionError):
            test_drafts_are_accepted_and_refused(bad, "fork")
        with pytest.raises(AssertionError):
            test_as_many_drafts_are_accepted_as_by_stock(bad, "fork")
    assert report(good).count("2.5600") == len(NAMES) * len(LENGTHS)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_question_has_one_answer_far_enough_back(length: int) -> None:
    for seed in SEEDS:
        prompt = recall_model.question(length, seed=seed)
        assert len(prompt) == length and len(set(prompt)) == length - 1
        assert prompt == recall_model.question(length, seed=seed)
        place = prompt.index(prompt[-1])
        assert place >= 1
        if length > 2200:
            assert length - place > 2048
        said = recall_model.answer(prompt, NEW_TOKENS)
        assert len(said) == NEW_TOKENS
        assert [*said[:20]] == (prompt[place + 1 :] * 20)[:20]
