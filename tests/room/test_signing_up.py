"""Who may come in: whoever has the code and a free name, later whoever has the name's password."""

import json

import pytest
from opened import FOLDER, STUDENTS
from student import PASSWORD, Refused


def refused(room, name, **more):
    with pytest.raises(Refused) as error:
        room.student(name, **more)
    return str(error.value)


def test_a_wrong_code_is_refused(room):
    assert "not the code of this room" in refused(room, "eve", code="one-two-four")
    assert "not the code of this room" in refused(room, "eve", code="")
    assert not room.home("eve").exists()


def test_a_code_is_its_words_as_a_phone_may_write_them(room):
    first, *rest = room.settings["ROOM_CODE"].split("-")
    written = f" {first.title()} {' '.join(rest)} "
    assert "at least 8" in refused(room, "eve", code=written, password="short")  # the code is right


@pytest.mark.parametrize("name", ["1eve", "e" * 21, "../ada", "eve smith", "北京", "eve;reboot", "-eve"])
def test_a_name_that_cannot_be_a_users_is_refused(room, name):
    assert "small letters" in refused(room, name) or "nvalid" in refused(room, name)


def test_a_short_password_is_refused(room):
    assert "at least 8" in refused(room, "eve", password="short")


def test_a_name_belongs_to_its_password(room, ada):
    assert "not its password" in refused(room, "ada", password="another password")
    room.student("ada", code="")  # the code is not asked for again
    room.student("ADA ", code="")  # nor is it another name in capitals


def test_the_teachers_name_needs_the_teachers_password(room):
    assert "teacher's password" in refused(room, "teacher")
    room.teacher()


def test_no_more_than_were_expected(room, ada, ben):
    known = json.loads((FOLDER / "state" / "students.json").read_text())
    for number in range(STUDENTS - len(known)):
        room.student(f"extra{number}")
    assert "The room is full" in refused(room, "onemore")
    assert not room.home("onemore").exists()


def test_passwords_are_not_kept(room, ada):
    file = FOLDER / "state" / "students.json"
    assert PASSWORD not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0 and file.parent.stat().st_mode & 0o077 == 0
