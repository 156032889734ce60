"""The check before a commit finds what is off in a notebook's outputs."""

import nbformat

from course import joined
from outputs import complaints, main


def test_what_is_off_is_named(tmp_path, capsys):
    warning = nbformat.v4.new_output("stream", name="stderr", text="careful")
    shown, source = nbformat.v4.new_output("stream", text="1 def f():"), {"tags": ["library-source"]}
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    cells = [
        nbformat.v4.new_code_cell("fine = 1", execution_count=1),
        nbformat.v4.new_code_cell("late = 1", execution_count=3),
        nbformat.v4.new_code_cell("warns()", execution_count=3, outputs=[warning]),
        nbformat.v4.new_code_cell("fails()", execution_count=4, outputs=[error]),
        nbformat.v4.new_code_cell("show_source(f)", execution_count=5, outputs=[shown], metadata=source),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    assert [complaint.split(": ")[1] for complaint in complaints(notebook)] == [
        "late = 1",
        "warns()",
        "fails()",
        "show_source(f)",
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells[:1]), tmp_path / "fine.ipynb")
    assert main([tmp_path / "fine.ipynb"]) == 0
    nbformat.write(notebook, tmp_path / "off.ipynb")
    assert main([tmp_path / "fine.ipynb", tmp_path / "off.ipynb"]) == 1
    assert "off.ipynb: code cell 2 has the execution count 3" in capsys.readouterr().out


def test_text_is_joined_and_stays_where_it_was_between_pictures():
    shown = nbformat.v4.new_output("display_data", data={"text/plain": "a picture"})
    printed = [nbformat.v4.new_output("stream", text=text) for text in ("a", "b\n", "c\n")]
    outputs = joined([printed[0], printed[1], shown, printed[2]])
    assert [output.get("text", "picture") for output in outputs] == ["ab\n", "picture", "c\n"]
