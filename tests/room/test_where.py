"""Where is everyone: the teacher sees who agreed, and nothing else."""

import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def solved(ada, ben):
    """Ada and Ben have both solved exercise 00.1."""
    for student in (ada, ben):
        said, error = student.open().run("from helpers import check; check('00.1', 3 * 7 * 49_152)")
        assert "right!" in said and "written down" not in said, error


def table(teacher):
    """Student -> cells of the row, as the teacher sees it."""
    page = teacher.web.get("/services/where/").text
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', page)
    return {name: re.findall("<td>(.*?)</td>", cells) for name, cells in rows}


def say(student, share):
    page = student.web.get("/services/where/").text
    form = {"_xsrf": re.search(r'name="_xsrf" value="([^"]*)"', page)[1], "share": share}
    answer = student.web.post("/services/where/", data=form)
    assert answer.status_code == 200
    return answer.text


def test_nothing_is_shown_before_a_student_agrees(room, solved):
    assert table(room.teacher()) == {}


def test_who_agrees_is_shown_until_they_change_their_mind(room, ada, solved):
    assert "Your teacher sees" in say(ada, "yes")
    teacher = room.teacher()
    assert table(teacher)["ada"][0] == "1"
    assert set(table(teacher)) == {"ada"}
    assert "does not see" in say(ada, "no")
    assert table(teacher) == {}


def test_a_student_does_not_see_the_table(room, ada, ben, solved):
    say(ben, "yes")
    page = ada.web.get("/services/where/").text
    assert "<table>" not in page and "ben" not in page
    say(ben, "no")


def test_a_yes_cannot_be_sent_for_someone_by_another_page(ada, solved):
    assert ada.web.post("/services/where/", data={"share": "yes"}).status_code == 403


def test_a_link_in_a_students_file_leads_to_nobody_else(room, ada, ben, solved):
    """The service runs as root, and reads what a student may put anything in place of."""
    file = room.home("ada") / ".inside-language-models" / "progress.json"
    kept = file.read_text()
    say(ada, "yes")
    kernel = ada.open()
    for code in (
        f"os.symlink({str(room.home('ben') / '.inside-language-models' / 'progress.json')!r}, f)",
        "os.mkfifo(f)",
        "open(f, 'w').write('[' * 99_000)",
        "json.dump({'format': 1, 'solved': {'<script>': '', '00.1<b>': ''}}, open(f, 'w'))",
    ):
        _, error = kernel.run(f"import os, json; f = {str(file)!r}; os.remove(f); {code}")
        assert not error
        assert set(table(room.teacher())["ada"]) == {""}, code
    assert "script" not in room.teacher().web.get("/services/where/").text
    kernel.run(f"open({str(file)!r}, 'w').write({kept!r})")
    assert Path(file).exists() and table(room.teacher())["ada"][0] == "1"
    say(ada, "no")
