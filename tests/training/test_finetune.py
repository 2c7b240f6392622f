import adapters as _hides_torchaudio  # noqa: F401  # isort: skip - must come before peft and transformers

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from adapters.character import files
from adapters.embedder import hashed
from adapters.language_model.transformers.prompting import PromptEncoder
from application.examples import Examples, showable
from domain.character import Character, Exchange
from domain.conversation import Message, Role
from domain.errors import BadConfiguration, BadInput
from domain.prompt import LAYOUTS, Layout, Prompt
from tests import checkpoints
from training import finetune as script
from training.course import Course, prepare
from training.exchanges import Lesson, Lessons, split
from training.run import Place, Recipe
from training.targets import NOT_A_TARGET, HeldOut, Tokens, held_out, target_losses, tokenised
from training.template_check import check_template
from training.workers import ALONE, Workers, join_workers

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

# dropout draws random numbers: what resumes exactly must restore those, too
QUICK = Recipe(epochs=1, rank=2, dropout=0.1, held_out=0.2, keep_every=2, evaluate_every=3, batch=4)
WITHOUT_DROPOUT = QUICK.model_copy(update={"dropout": 0.0})
SUBJECTS = ["语文", "数学", "英语", "物理", "化学", "生物", "地理", "历史", "政治", "体育", "音乐", "美术"]


def schoolgirl() -> Character:
    """Return the packaged character with 36 exchanges of our own, of one turn, of two, and with something recalled."""
    plain = [Exchange((f"{subject}好难啊", f"{subject}难的地方，我们一步一步来。")) for subject in SUBJECTS]
    longer = [
        Exchange((f"今天考{subject}", "考得怎么样？", "还行", f"那就好，{subject}也没有那么可怕吧。"))
        for subject in SUBJECTS
    ]
    recalled = [
        Exchange((f"明天有{subject}课", "书带了吗？"), name="小林", memories=(f"2026-03-02 同学说喜欢{subject}",))
        for subject in SUBJECTS
    ]
    zishu = files.build(files.Config()).load("zishu")
    return replace(zishu, exchanges=(*plain, *longer, *recalled))


@pytest.fixture(scope="module")
def character() -> Character:
    return schoolgirl()


@pytest.fixture(scope="module", params=["gemma3", "llama"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return getattr(checkpoints, request.param)(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def course(base: Path, character: Character) -> Course:
    return prepare(character, hashed.build(hashed.Config()), AutoTokenizer.from_pretrained(base), QUICK)


class Quiet:
    """Watches a run, and cuts the power after a step."""

    def __init__(self, power_cut_at: int | None = None) -> None:
        self._power_cut_at = power_cut_at
        self.figures: list[HeldOut] = []

    def stepped(self, place: Place, loss: float, progress: float) -> None:
        if place.step == self._power_cut_at:
            raise KeyboardInterrupt

    def measured(self, place: Place, figures: HeldOut) -> None:
        self.figures.append(figures)


def run(
    base: Path,
    character: Character,
    folder: Path,
    *,
    power_cut_at: int | None = None,
    steps: int | None = None,
    workers: Workers = ALONE,
    recipe: Recipe = QUICK,
) -> list[HeldOut]:
    watcher, done = Quiet(power_cut_at), iter(range((steps or 1000) - 1))
    script.finetune(
        recipe,
        character,
        hashed.build(hashed.Config()),
        base,
        folder,
        console=Console(file=StringIO()),
        watcher=watcher,
        workers=workers,
        stop=lambda: next(done, None) is None,
    )
    return watcher.figures


def learnt_text(tokens: Tokens, tokenizer: object) -> str:
    return tokenizer.decode([target for target in tokens.targets if target != NOT_A_TARGET])  # type: ignore[attr-defined]


# what people write, marks of the layouts among it
LINES = st.text("你好老师今天考试没，。？～哦🐢\u3000<end_of_turn>：同学 \n", min_size=1, max_size=20).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.sampled_from(sorted(LAYOUTS)), LINES, LINES, LINES, LINES, st.lists(LINES, max_size=2))
def test_she_learns_her_own_words_and_the_ends_of_her_turns_and_nothing_else(
    base: Path, layout: str, words: str, reply: str, earlier: str, answered: str, notes: list[str]
) -> None:
    tokenizer, marks = AutoTokenizer.from_pretrained(base), LAYOUTS[layout]
    history = (Message(Role.USER, earlier), Message(Role.HER, answered))
    prompt = Prompt("同学", "紫舒", "紫舒是老师。", words, history=history, notes=tuple(notes))
    tokens = tokenised(Lesson(prompt, reply), marks, tokenizer)
    hers = "".join(marks.clean(line) + marks.her_close for line in (answered, reply))
    assert learnt_text(tokens, tokenizer) == tokenizer.decode(tokenizer(hers, add_special_tokens=False)["input_ids"])
    assert tokens.targets[tokens.close_at :] == tokens.ids[tokens.close_at :] != ()
    assert tokens.learnt > 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.sampled_from(sorted(LAYOUTS)), st.randoms(use_true_random=False))
def test_a_prompt_is_learnt_exactly_as_serving_encodes_it(course: Course, base: Path, layout: str, rng: Random) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    lesson = course.lessons.varied(rng.choice(course.divided.train), rng)
    tokens = tokenised(lesson, LAYOUTS[layout], tokenizer)
    assert list(tokens.ids[: tokens.reply_at]) == PromptEncoder(tokenizer, LAYOUTS[layout]).ids(lesson.prompt)


def test_what_is_measured_is_never_learnt_or_shown(course: Course) -> None:
    divided = course.divided
    assert {one.turns[0] for one in divided.train}.isdisjoint(one.turns[0] for one in divided.held_out)
    known = {showable(exchange) for exchange in divided.train}
    rng = Random(3)
    shown = [course.lessons.plain(exchange, shown=2, seed=0) for exchange in divided.held_out]
    assert all(lesson.prompt.found for lesson in shown)
    for lesson in (*shown, *(course.lessons.varied(exchange, rng) for exchange in divided.train * 5)):
        assert set(lesson.prompt.found) <= known


def test_a_name_that_is_known_changes_no_lesson_in_which_it_would_be_asked_for() -> None:
    told = Exchange(("我叫小林。", "小林你好呀，我是紫舒。"))
    who = Exchange(("你是谁？", "我叫紫舒，住在你的电脑里。"))
    asking = Exchange(("晚上好", "晚上好呀，该怎么称呼你呢？"))
    nameless = Exchange(("你知道我的名字吗", "你还没告诉我呢。"))
    zishu = replace(schoolgirl(), exchanges=(told, who, asking, nameless))
    lessons = Lessons(zishu, Examples(hashed.build(hashed.Config()), shown=2), len, budget=250)
    asyncio.run(lessons.find(zishu.exchanges))
    rng = Random(1)
    varied = {one: [lessons.varied(one, rng).prompt for _ in range(60)] for one in zishu.exchanges}
    assert any(prompt.profile for prompt in varied[who])
    assert any(prompt.profile and Message(Role.USER, "我叫小林。") in prompt.history for prompt in varied[who])
    assert not any(prompt.profile for one in (asking, nameless) for prompt in varied[one])


def test_now_and_then_the_very_answer_is_among_the_examples_and_never_that_of_a_later_turn(course: Course) -> None:
    rng = Random(5)
    for exchange in course.divided.train:
        lessons = [course.lessons.varied(exchange, rng) for _ in range(20)]
        openings = [showable(exchange) in one.prompt.found for one in lessons if one.reply == exchange.turns[1]]
        assert any(openings) == (showable(exchange) is not None)
        assert not all(openings)
        assert not any(showable(exchange) in one.prompt.found for one in lessons if one.reply != exchange.turns[1])


@given(st.lists(st.text(min_size=1, max_size=6), min_size=60, max_size=80, unique=True), st.data())
def test_the_division_stays_when_exchanges_are_added(lines: list[str], data: st.DataObject) -> None:
    exchanges = [Exchange((line, "嗯")) for line in lines]
    fewer = data.draw(st.permutations(exchanges).map(lambda every: every[:50]))
    try:
        some, all_of_them = split(fewer, share=0.3), split(exchanges, share=0.3)
    except BadInput:
        return
    assert set(some.held_out) <= set(all_of_them.held_out)
    assert set(some.train) <= set(all_of_them.train)


def test_the_loss_at_targets_is_the_dense_cross_entropy_with_its_gradient(base: Path, course: Course) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    (lesson, *_) = course.measured()
    ids = torch.tensor([lesson.ids])
    weights: Tensor = model.get_decoder().layers[0].self_attn.q_proj.weight
    dense = cross_entropy(
        model(ids).logits[0, :-1], torch.tensor(lesson.targets[1:]), ignore_index=NOT_A_TARGET, reduction="sum"
    )
    (wanted,) = torch.autograd.grad(dense, weights)
    at_targets = target_losses(model, [lesson])
    (got,) = torch.autograd.grad(at_targets.sum(), weights)
    torch.testing.assert_close(at_targets.sum(), dense)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_padding_and_the_size_of_micro_batches_change_no_loss(base: Path, course: Course) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    lessons: Sequence[Tokens] = course.measured()
    together = target_losses(model, lessons)
    alone = torch.cat([target_losses(model, [lesson]) for lesson in lessons])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert held_out(model, lessons, batch=1).loss == pytest.approx(held_out(model, lessons, batch=4).loss, rel=1e-5)


def test_a_stopped_and_a_killed_run_end_as_one_that_was_never_disturbed(
    base: Path, character: Character, tmp_path: Path
) -> None:
    undisturbed = run(base, character, tmp_path / "undisturbed")
    run(base, character, tmp_path / "stopped", steps=3)
    run(base, character, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run(base, character, tmp_path / "killed", power_cut_at=5)
    run(base, character, tmp_path / "killed")
    curves = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("undisturbed", "stopped", "killed")]
    assert curves[0] == curves[1] == curves[2]
    weights = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("undisturbed", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert len(undisturbed) > 2


def test_two_processes_learn_what_one_does(character: Character, tmp_path: Path) -> None:
    base = checkpoints.gemma3(tmp_path / "base")
    alone = run(base, character, tmp_path / "alone", recipe=WITHOUT_DROPOUT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [__file__, str(base), str(tmp_path / "together")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    together = [
        json.loads(line)["held_out"]["loss"]
        for line in (tmp_path / "together" / "metrics.jsonl").read_text().splitlines()
        if "held_out" in line
    ]
    assert together == pytest.approx([one.loss for one in alone], rel=1e-3)


def test_what_was_learnt_can_be_shipped(base: Path, character: Character, course: Course, tmp_path: Path) -> None:
    figures = run(base, character, tmp_path)
    assert min(one.loss for one in figures) < figures[0].loss
    folder = tmp_path / "adapter"
    assert sorted(file.name for file in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "starter.toml",
    ]
    assert str(base) not in "".join(file.read_text() for file in folder.glob("*.json"))
    shipped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    measured = held_out(shipped, course.measured()).loss
    assert measured == pytest.approx(min(one.loss for one in figures[1:]), rel=1e-3)


def test_the_lessons_are_shown_before_the_first_step(base: Path, course: Course) -> None:
    shown = StringIO()
    lesson = course.lessons.plain(course.divided.train[0], shown=2, seed=0)
    console = Console(file=shown, force_terminal=True, color_system="standard", width=400)
    check_template([lesson], LAYOUTS["script"], AutoTokenizer.from_pretrained(base), console)
    assert f"\x1b[1;32m{lesson.reply}⏎" in shown.getvalue()


def test_a_layout_without_an_end_of_turn_is_refused(base: Path, course: Course) -> None:
    endless = Layout("{user}：", "\n", "{her}：", "")
    lesson = course.lessons.plain(course.divided.train[0], shown=0, seed=0)
    with pytest.raises(BadInput, match="does not teach the end of her turn"):
        check_template([lesson], endless, AutoTokenizer.from_pretrained(base), Console(file=StringIO()))


def test_too_little_to_learn_from_is_refused_with_a_remedy(base: Path, character: Character, tmp_path: Path) -> None:
    for exchanges in ((), character.exchanges[:1]):
        with pytest.raises(BadInput) as caught:
            run(base, replace(character, exchanges=exchanges), tmp_path)
        assert "Add exchanges" in caught.value.remedy


def test_a_wrong_setting_and_a_missing_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="layout"):
        script._recipe(None, {"layout": "poem"})
    with pytest.raises(BadConfiguration, match="There is no run in"):
        script._recipe(tmp_path, {})


def test_a_run_keeps_its_recipe(base: Path, character: Character, tmp_path: Path) -> None:
    run(base, character, tmp_path, steps=1)
    assert script._recipe(tmp_path, {"layout": "script"}) == QUICK
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 0


def test_a_run_of_other_exchanges_is_not_resumed(base: Path, character: Character, tmp_path: Path) -> None:
    run(base, character, tmp_path, steps=1)
    with pytest.raises(BadInput, match="have changed"):
        run(base, replace(character, exchanges=character.exchanges[1:]), tmp_path)


def test_help_explains_the_program() -> None:
    app = script.typer.Typer()
    app.command()(script.main)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).output
    assert "--minutes" in shown
    assert "--resume" in shown


if __name__ == "__main__":  # one of two processes
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), schoolgirl(), Path(sys.argv[2]), workers=join_workers(), recipe=WITHOUT_DROPOUT)
