import pytest
from absl import flags

from configs.errors import UserError
from data.filters.c4 import C4
from data.filters.chain import FilterOptions
from data.filters.gopher import GopherQuality
from train.commands.filter_flags import define_filter_flags, filter_options


def parsed(*arguments):
    values = flags.FlagValues()
    define_filter_flags(values)
    values(["prepare", *arguments])
    return filter_options(values)


def test_no_flag_is_no_filter():
    assert parsed() == FilterOptions() and not parsed()


def test_flags_and_thresholds():
    found = parsed("--gopher_quality", "--c4", "--thresholds=gopher_quality.min_words=20,c4.min_sentences=3")
    assert found == FilterOptions(gopher_quality=GopherQuality(min_words=20), c4=C4(min_sentences=3))
    assert parsed("--languages=en,de", "--mask=emails").languages == ("en", "de")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--thresholds=c4.min_sentences=3"], "--thresholds=c4.min_sentences=3 has no effect without --c4"),
        (["--c4", "--thresholds=c4.min_sentence=3"], "'c4.min_sentence' is unknown.*c4.min_sentences"),
        (["--c4", "--thresholds=c4.min_sentences=x"], "expected a number, got 'x'"),
        (["--c4", "--thresholds=c4"], "'c4' is unknown"),
    ],
)
def test_an_invalid_threshold_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        parsed(*arguments)
