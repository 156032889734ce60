"""helpers.errors: messages that a notebook and a terminal word in their own ways."""

import pickle

import pytest

from helpers.errors import BadInputError, DamagedFilesError, DoesNotFitError, Setting

BEGIN_ANEW = Setting("resume", False)


@pytest.mark.parametrize("kind", [BadInputError, DamagedFilesError, DoesNotFitError])
def test_a_message_words_its_settings_as_its_reader_types_them(kind):
    error = kind("This is damaged: begin anew (", BEGIN_ANEW, ") with ", Setting("dtype", "float32"), ".")
    assert str(error) == 'This is damaged: begin anew (resume=False) with dtype="float32".'
    spelled = {BEGIN_ANEW: "--no_resume", Setting("dtype", "float32"): "--dtype float32"}
    assert error.worded(spelled.get) == "This is damaged: begin anew (--no_resume) with --dtype float32."
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.parts, str(copy)) == (kind, error.parts, str(error))
