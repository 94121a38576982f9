"""The pages say what the code does: flags, metrics, paths, diffs. `make docs` builds the site; these need no mkdocs."""

import functools
import re
import shlex
from pathlib import Path

import pytest
from common import ROOT, SCRIPTS
from site_hooks import hooks

from benchmark.suites import dmc

DOCS = ROOT / "docs"

# Flags of other programs that pages name, each with the file that shows that it exists; None for common tools.
FOREIGN = {
    "--fix": "tools/copies.py",
    "--lists": "tools/copies.py",
    "--changes": "tools/copies.py",
    "--xla_cpu_multi_thread_eigen": "benchmark/jobs.py",
    "--help": None,
    "--logdir": None,
    "--load_fast": None,
    "--sync-tensorboard": None,
    "--link": None,
    "--no-clobber": None,
}
OUTPUTS = ("docs/results",)  # written by commands: need not exist
SECTIONS = ("Run it", "Results", "Differences from the paper", "Logged metrics", "Flags", "Limits")
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "AGENTS.md")


@functools.cache
def pages():
    """Every page that is written by hand, with what is generated in it, and those of the root: name -> Markdown."""
    found = {str(path.relative_to(DOCS)): hooks.render(path.read_text()) for path in sorted(DOCS.rglob("*.md"))}
    found = {name: text for name, text in found.items() if not re.fullmatch(r"results/\w+/report\.md", name)}
    return found | {name: (ROOT / name).read_text() for name in ROOT_PAGES}


@functools.cache
def flags_of(program):
    return {hooks.flag(name) for name, *_ in hooks.arguments(hooks.program(program))}


@functools.cache
def programs():
    return [*SCRIPTS, *[name for name, text in hooks.commands().items() if "class Args" in text]]


def code(markdown):
    """All code of a page: blocks and spans, without the scripts that are shown whole."""
    markdown = re.sub(r"^ *```\{\.python linenums.*?^ *```", "", markdown, flags=re.S | re.M)
    blocks = re.findall(r"^ *```.*?^ *```", markdown, re.S | re.M) + re.findall(r"^    .*(?:\n    .*)*", markdown, re.M)
    return [*blocks, *re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", markdown, flags=re.S))]


def unknown_flags(markdown):
    """Flags in a page's code that no program has; and in its commands, flags that their program does not have."""
    every = set().union(*map(flags_of, programs()))
    found = []
    for text in code(markdown.replace("\\\n", " ")):
        named = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text))
        found += [name for name in named if name.replace("--no-", "--") not in every and name not in FOREIGN]
        for line in re.findall(r"python (?:algos/|-m (?:benchmark|studies)\.)[^\n`]*", text):
            tool, program = re.match(
                r"python (?:algos/|-m (?:benchmark|studies)\.)(?:(churn|analysis|op_by_op) )?(\w+)", line
            ).groups()
            own, _, passed = line.split("#")[0].partition(" -- ")
            if program in programs():
                every_script = set().union(*map(flags_of, SCRIPTS))
                own_flags = flags_of(program) | (flags_of(tool) if tool in programs() else set())  # some have none
                known = [*own_flags, "--help"], [*every_script]
                for words, there in zip((own, passed), known, strict=True):
                    typed = [word.split("=")[0] for word in shlex.split(words.replace("...", "")) if word[:2] == "--"]
                    found += [f"{program}: {flag}" for flag in typed if flag.replace("--no-", "--") not in there]
            elif "full_entropy" not in program:  # the example of CONTRIBUTING.md
                found.append(f"no program {program}")
    return found


def test_flags_exist():
    for name, text in pages().items():
        assert not unknown_flags(text), name
    for flag, path in FOREIGN.items():
        assert path is None or flag in (ROOT / path).read_text(), f"{flag} is not in {path}"


def test_a_flag_that_does_not_exist_is_seen():
    assert unknown_flags("set `--replay-rato 3`") == ["--replay-rato"]
    assert unknown_flags("```\npython algos/sac.py --reset-interval 3\n```") == ["sac: --reset-interval"]
    assert unknown_flags("    python algos/sr_sac.py --reset-interval 3\n") == []
    assert unknown_flags("`python -m benchmark.sweep --suite x -- --suite y`") == ["sweep: --suite"]
    assert unknown_flags("`python algos/sca.py`") == ["no program sca"]
    for tool in ("churn", "analysis"):
        command = f"python -m studies.{tool} spr --num-seeds 2 --reset-interval 3 --passive-twin"
        unknown = ["--reset-interval"] + ["--passive-twin"] * (tool == "churn")
        assert unknown_flags(f"`{command}`") == [f"spr: {flag}" for flag in unknown]


def broken_paths(name, markdown):
    """Links of a page to files that are not there, and files that its code names and that are not there."""
    site = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*") if path.is_file()} | set(hooks.generated())
    folder, found = Path(name).parent, []
    for target in re.findall(r"\]\(([^)\s]+)\)", markdown):
        path = target.split("#")[0]
        if not path or re.match(r"https?://", path):
            continue
        if name in ROOT_PAGES:
            there = (ROOT / path).exists()
        else:
            parts = []
            for part in (folder / path).parts:
                parts = parts[:-1] if part == ".." else [*parts, part]
            there = "/".join(parts) in site
        found += [] if there else [target]
    for text in code(markdown):
        for path in re.findall(r"(?<![\w./~-])(?:algos|benchmark|docs|studies|tests|tools)/[\w./{}-]*", text):
            path = path.rstrip("./")
            example = "{" in path or "full_entropy" in path or path in OUTPUTS
            found += [] if example or (ROOT / path).exists() else [path]
    return found


def test_paths_exist():
    for name, text in pages().items():
        assert not broken_paths(name, text), name


def test_a_path_that_does_not_exist_is_seen():
    assert broken_paths("algos/sac.md", "[x](../nowhere.md) [y](../concepts.md#z) `tests/test_nothing.py`") == [
        "../nowhere.md",
        "tests/test_nothing.py",
    ]
    assert broken_paths("README.md", "[x](docs/nowhere.png)") == ["docs/nowhere.png"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_a_page_with_all_sections(script):
    text = hooks.page(f"algos/{script}.md")
    wanted = [*SECTIONS, *(["Changes from the parent"] if hooks.parents(script) else [])]
    assert [name for name in wanted if f"\n## {name}\n" not in text] == []
    for what in ("flags", "results", "source", *(["diff"] if hooks.parents(script) else [])):
        assert f"<!-- {what}: {script} -->" in text, what
    assert f"algos/{script}.md" in (ROOT / "mkdocs.yml").read_text()
    for heading, tables, figures in (("Results", 1, 1), ("Logged metrics", 2, 0)):
        shown = hooks.section(hooks.render(text), heading)
        assert len(re.findall(r"^ *\|-+\|", shown, re.M)) <= tables, f"{heading}: more than {tables} tables"
        assert shown.count("](../results/") - shown.count("/index.md)") <= figures, (
            f"{heading}: more than {figures} figures"
        )
    assert re.match(r"\*\*.+?\*\*", hooks.section(text, "Results"), re.S), "the results begin with a verdict"


def test_navigation_is_the_pages():
    named = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().split("nav:")[-1]))
    assert named == set(pages()) - set(ROOT_PAGES)


# What belongs in the log, or beside a measured speed: machines, hours, what cannot be repeated.
LABORATORY = re.compile(r"AMD EPYC|no command does this|curves? (was |were )?not kept|beside (much )?other work")


def test_only_the_log_names_machines():
    assert LABORATORY.search((DOCS / "log/2026-11.md").read_text())
    for name in pages():
        written = (ROOT / name if name in ROOT_PAGES else DOCS / name).read_text()
        if not re.match(r"log/|speed\.md", name):
            assert not LABORATORY.search(written), name


def test_the_log_is_dated_newest_first():
    dates = [date for date, *_ in hooks.log_entries()]
    assert dates == sorted(dates, reverse=True) and len(dates) > 10
    for date, _, page, _ in hooks.log_entries():
        assert page == f"{date[:7]}.md"


def test_what_is_common_to_scripts_is_written_once():
    """A script's page repeats no metric of metrics.md, and on Atari no row of the protocol's differences. (How an
    agent evaluates differs.)"""
    common = {tag for tag, _ in hooks.METRIC.findall(hooks.page("metrics.md"))}
    protocol = hooks.section(hooks.page("atari.md"), "Differences from the published protocols")
    shared = set(re.findall(r"^\| ([^|]+?) \| ", protocol, re.M)) - {"what", "evaluation"}
    assert len(common) > 10 and "frames" in shared
    for script in SCRIPTS:
        text = hooks.page(f"algos/{script}.md")
        own = {tag for tag, _ in hooks.METRIC.findall(hooks.section(text, "Logged metrics"))}
        assert not own & common and (own or script == "sr_sac"), script
        if "](../atari.md" in text:
            said = set(re.findall(r"^\| ([^|]+?) \| ", hooks.section(text, "Differences from the paper"), re.M))
            assert not said & shared, script


@pytest.mark.parametrize("script", [name for name in SCRIPTS if hooks.parents(name)])
def test_diff_shows_the_declared_definitions(script):
    """All of them and nothing else; put together again, a diff's lines are both sources."""
    found, copies = hooks.changes(script), hooks.copies()
    text = hooks.scripts()[script]
    declared = copies.declaration(text)
    assert {own for own, *_ in found} == {*declared.differs, *declared.without}
    mine, first = copies.definitions(text), copies.definitions(hooks.scripts()[hooks.parents(script)[0]])
    for own, note, lines, old, source in found:
        before = [old.splitlines()[at] for sign, *_, at in lines if sign == "-"]
        after = [source.splitlines()[at] for sign, *_, at in lines if sign != "-"]
        assert after == source.splitlines() and source == (mine[own].source if own in mine else "")
        assert all(line in old.splitlines() for line in before) and (not old) == (note == "new")
        assert {sign for sign, *_ in lines} & {"+", "-"}, f"{own} is declared and does not differ"
        if own in declared.without:
            assert before == old.splitlines() and old == first[own].source and note.endswith("not here")
        numbered = text.splitlines()
        assert all(numbered[number - 1] == source.splitlines()[at] for sign, _, number, at in lines if sign != "-")
    shown = hooks.diff_html(script)
    assert len(re.findall(r'class="diff-name"', shown)) == len(found)
    signs = [sign for _, _, lines, *_ in found for sign, *_ in lines]
    assert shown.count('class="diff-new"') == signs.count("+") and shown.count('class="diff-gone"') == signs.count("-")


def test_diff_of_changed_scripts(monkeypatch):
    """A line that is changed in a declared definition is in the diff; one in an undeclared definition is not. What is
    left out is shown as removed."""
    changed = dict(hooks.scripts())
    changed["sr_sac"] = changed["sr_sac"].replace(
        "due = num_resets_until(args, step) + 1", "due = num_resets_until(args, step) + 2"
    )
    changed["sr_sac"] = changed["sr_sac"].replace("return jnp.tanh(pre_tanh)", "return jnp.sin(pre_tanh)")
    monkeypatch.setattr(hooks, "scripts", lambda: changed)
    shown = re.sub("<.*?>", "", hooks.diff_html("sr_sac"))
    assert "due = num_resets_until(args, step) + 2" in shown and "jnp.sin" not in shown
    changed["sr_sac"] = changed["sr_sac"].replace("sac.py; differs:", "sac.py; without: sample_action; differs:")
    shown = hooks.diff_html("sr_sac")
    assert "<code>sample_action</code> of sac.py, not here" in shown
    gone = [re.sub("<.*?>", "", line) for line in shown.splitlines() if 'class="diff-gone"' in line]
    assert any("return jnp.tanh(pre_tanh)" in line for line in gone)


def test_tree_and_flags():
    tree = hooks.tree_html()
    assert {"sac", "dqn"} <= {*re.findall(r"<strong>(\w+)\.py", tree)} and tree.count("<li>") == len(SCRIPTS)
    assert "<code>num_resets_until</code>" in tree
    table, common = hooks.flags_table("sr_sac"), hooks.common_flags_table()
    shown = [re.findall(r"^\| `--([\w-]+)`", text, re.M) for text in (table, common)]
    every = [name.replace("_", "-") for name, *_ in hooks.arguments(hooks.scripts()["sr_sac"])]
    assert sorted([*shown[0], *shown[1]]) == sorted(every) and "seed" in shown[1] and "replay-ratio" in shown[0]
    assert "`--seed`, `--num-seeds`" in table.splitlines()[-1]
    assert "| `--reset-interval` | `2,560,000` *(not in the parent)* |" in table
    assert "| `--replay-ratio` | `32` *(parent: 1)* |" in table and "| `--gamma` | `0.99` | discount factor |" in table


def test_a_request_that_nothing_answers_ends_the_build():
    for wrong in (
        "<!-- flgas: sac -->",
        "<!-- flags: nothing -->",
        "<!-- TODO -->",
        "<!-- metrics of: nothing -->",
        "<!-- figure: x: nowhere.png -->",
        "<!-- diff: sac -->",
    ):
        with pytest.raises(hooks.DocsError):
            hooks.render(f"a\n\n{wrong}\n")
    assert hooks.render("a\n\n    <!-- scripts -->\n").count("](algos/") == len(SCRIPTS)


@pytest.mark.parametrize("version", ["layout", "provenance", "versions"])
def test_results_are_those_of_the_tables(version, tmp_path, monkeypatch):
    """A small suite's committed files: scores, intervals, minutes, resets and provenance by hand, also of runs that
    older scripts made."""
    hooks.scripts()  # the project's, once, whichever test comes first
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    folder = tmp_path / "benchmark" / "results" / "dmc_cpu"
    folder.mkdir(parents=True)
    rows, runs = ["suite,algo,replay_ratio,env,seed,step,metric,value"], {}
    for seed, value in ((1, 100), (2, 130), (3, 70)):
        for step, more in ((5_000, 900), (10_000, -10), (30_000, 10)):
            rows.append(f"dmc_cpu,sr_sac,16,WalkerRun-v1,{seed},{step},eval/episodic_return,{value + more}")
        machine = {"device": "cpu", "cpu": "A CPU", "threads": 1}
        made = {"jax": "1", "envpool": "2"} | (machine if version != "versions" else {})
        start = {"command": "algos/sr_sac.py --seed 1", "commit": "0123456789", version: made, "from_step": 0}
        start |= machine if version == "versions" else {}
        args = {"exp_name": "sr_sac", "env_id": "WalkerRun-v1", "seed": seed, "replay_ratio": 16.0}
        args |= {"reset_interval": 128_000}
        runs[f"WalkerRun-v1__sr_sac__rr16__{seed}"] = {
            "args": args,
            "starts": [start | {"to_step": 30_000, "wall_s": 60 * seed}],
        }
    (folder / "curves.csv").write_text("\n".join(rows) + "\n")
    (folder / "run.json").write_text(hooks.json.dumps(runs))
    row = "| [dmc_cpu](../results/dmc_cpu/index.md) | WalkerRun-v1 | 16 | 3 | 100 ± 30 "
    assert f"{row}| | | 3 |" in hooks.results_table("sr_sac")  # resets at 8k, 16k, 24k
    head = "suite,algo,replay_ratio,env,unit,seeds,mean,std,published,published_seeds,published_mean,published_std"
    compared = [f"{head},difference,low,high,verdict"]
    compared.append("dmc_cpu,sr_sac,16,WalkerRun-v1,return,3,100.00,30.00,sr_sac,5,120.4,8.0,-20,-90,50,agrees")
    compared.append(
        "dmc_cpu,sr_sac,16,all tasks compared (1),normalized,3,0.1,,sr_sac,5,0.1204,,-0.02,-0.09,0.05,lower"
    )
    (folder / "comparison.csv").write_text("\n".join(compared) + "\n")
    assert f"{row}| 120 ± 8.0 (5) | agrees | 3 |" in hooks.results_table("sr_sac")
    assert "| all tasks compared (1), normalized | 16 | 3 | 0.100 | 0.120 | lower |  |" in hooks.results_table("sr_sac")
    assert (
        "| `sr_sac`, ratio 16 | [dmc_cpu](results/dmc_cpu/index.md) | 1 | 1 agrees | lower |" in hooks.compared_table()
    )
    (folder / "comparison.csv").write_text("\n".join(compared).replace("100.00,30.00", "90,20"))
    assert f"{row}| 120 ± 8.0 (5); ours 90 ± 20 at the same steps | agrees | 3 |" in hooks.results_table("sr_sac")
    assert hooks.results_table("sac") == "No suite's runs of this script are committed yet."
    page = hooks.generated()["results/dmc_cpu/index.md"]
    assert "Commit 0123456; A CPU, 1 thread a run; jax 1, EnvPool 2." in page
    assert "## Raw data" in page and "for `sr_sac` also `--reset-interval 128000`" in page
    assert "\npython -m benchmark.sweep --suite dmc_cpu --algos sr_sac --tasks WalkerRun-v1 --replay-ratios 16" in page


def test_without_results_there_is_a_site(tmp_path, monkeypatch):
    hooks.scripts()  # the project's, once, whichever test comes first
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    monkeypatch.setattr(hooks, "DOCS", tmp_path / "docs")
    assert hooks.generated() == {}
    assert "not been run to its end" in hooks.teaser("dmc_cpu") and "none yet" in hooks.suites_table()


def test_the_report_becomes_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "DOCS", tmp_path)
    folder = tmp_path / "results" / "dmc_cpu"
    folder.mkdir(parents=True)
    (folder / "report.md").write_text("# dmc_cpu\n\n![x](x.png)\n\n## Verdicts\n")
    text = hooks.generated()["results/dmc_cpu/index.md"]
    assert text.startswith("# dmc_cpu\n") and text.count("# dmc_cpu\n") == 1 and "![x](x.png)\n\n## Verdicts" in text


def test_the_example_of_contributing_works():
    """The child that CONTRIBUTING.md makes of sac.py keeps the rules, with its declaration and not without."""
    text, copies = (ROOT / "CONTRIBUTING.md").read_text(), hooks.copies()
    old, new = re.findall(r"```python\n(    target_entropy = .*)\n```", text)
    declaration = re.search(r"^Parent: .*$", text, re.M)[0]
    parent = hooks.scripts()["sac"]
    assert parent.count(old) == 1
    child = parent.replace(old, new)
    declared = re.sub(r"^Run:", f"{declaration}\nRun:", child, count=1, flags=re.M)
    scripts = {"sac.py": parent, "sac_full_entropy.py": declared}
    assert copies.breaches(scripts) == []
    idle = {
        "sac.py": parent,
        "sac_full_entropy.py": re.sub(r"^Run:", f"{declaration}\nRun:", parent, count=1, flags=re.M),
    }
    assert copies.breaches(idle) == ["sac_full_entropy.py: `differs:` names alpha_loss in vain, or twice"]
    suite = re.search(r"```python\n(    \"hoppers\".*?)```", text + (DOCS / "sweep.md").read_text(), re.S)[1]
    assert list(eval("{" + suite + "}", vars(dmc))["hoppers"].scores) == ["HopperHop-v1", "HopperStand-v1"]
