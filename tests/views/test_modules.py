"""The widgets' pages: one script each, made of modules."""

import re
import shutil
import subprocess

import pytest

from helpers.views import modules
from helpers.views.modules import PAGES, front

ENTRIES = sorted(file.name for file in PAGES.glob("*.js") if "export default" in file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ENTRIES)
def test_a_page_is_one_script_that_asks_for_nothing_else(name):
    script = front(name)
    assert not re.search(r"^\s*(import|export)\b(?! default)", script, re.MULTILINE), "no browser has to fetch a module"
    assert script.count("export default") == 1 and script.endswith("export default { render };\n")
    assert "innerHTML" not in script and "eval(" not in script and "fetch(" not in script
    assert "/**" not in script and "@param" not in script, "what only checkers read stays behind"
    assert front(name) is script and modules.front.__wrapped__(name) == script, "the same every time"


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node here; no reader needs one")
def test_a_page_is_a_script_without_mistakes(name, tmp_path):
    (tmp_path / "page.mjs").write_text(front(name), encoding="utf-8")
    subprocess.run(["node", "--check", tmp_path / "page.mjs"], check=True, capture_output=True)


def test_every_module_is_in_a_page():
    used = "".join(front(name) for name in ENTRIES)
    for file in PAGES.rglob("*.js"):
        first = re.search(r"^export (?:async )?(?:function|const|class) (\w+)", file.read_text("utf-8"), re.MULTILINE)
        assert file.name in ENTRIES or f" {first[1]}" in used, file


def test_modules_come_before_those_that_need_them_each_in_its_own_scope(tmp_path, monkeypatch):
    monkeypatch.setattr(modules, "PAGES", tmp_path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "page.js").write_text(
        '// A page.\nimport { twice as both } from "./parts/two.js";\nimport {\n  ONE,\n} from "./one.js";\n\n'
        "export default { render: () => both(ONE) };\n"
    )
    (tmp_path / "parts" / "two.js").write_text(
        'import { ONE } from "../one.js";\n\nconst own = ONE;\n\n/**\n * @param {number} n\n */\n'
        "export function twice(n) {\n  return n + own;\n}\n"
    )
    (tmp_path / "one.js").write_text("const own = 1;\nexport const ONE = own;\nexport async function later() {}\n")
    assert modules.front.__wrapped__("page.js") == (
        "const one_js = (() => {\nconst own = 1;\nconst ONE = own;\nasync function later() {}\n"
        "return { ONE, later };\n})();\n"
        "const parts_two_js = (() => {\nconst { ONE } = one_js;\n\nconst own = ONE;\n\n"
        "function twice(n) {\n  return n + own;\n}\nreturn { twice };\n})();\n"
        "// A page.\nconst { twice: both } = parts_two_js;\nconst {\n  ONE,\n} = one_js;\n\n"
        "export default { render: () => both(ONE) };\n"
    )


def test_a_circle_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(modules, "PAGES", tmp_path)
    (tmp_path / "a.js").write_text('import { b } from "./b.js";\nexport const a = b;\n')
    (tmp_path / "b.js").write_text('import { a } from "./a.js";\nexport const b = a;\n')
    with pytest.raises(ValueError, match=r"circle: a\.js -> b\.js -> a\.js"):
        modules.front.__wrapped__("a.js")
