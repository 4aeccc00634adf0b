"""Sample rate and frame shift of a probed program, from the headers of the audio that it reads."""

import numpy as np
import pytest
import soundfile

from logitstore.capture.probe.audio import audio_paths, rates_of

SECONDS = (0.4, 0.55, 0.9, 3.1)


def recordings(folder, rate, seconds=SECONDS):
    paths = []
    for i, length in enumerate(seconds):
        path = folder / f"utt{i}.wav"
        soundfile.write(path, np.zeros(round(length * rate)), rate)
        paths.append(str(path))
    return paths


def frames_of(seconds, shift, lost):
    return [int(length / shift) - lost for length in seconds]


@pytest.mark.parametrize(("rate", "shift"), [(8000, 0.08), (16000, 0.02), (16000, 0.06), (44100, 0.04)])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_both_rates_follow_from_headers_and_lengths(tmp_path, rate, shift, lost):
    paths = recordings(tmp_path, rate)
    found = rates_of(paths, [], frames_of(SECONDS, shift, lost))
    assert (found.sample_rate, found.frame_shift) == (rate, round(shift * rate))


def test_files_are_matched_with_ids_by_name_where_their_number_is_another(tmp_path):
    paths = recordings(tmp_path, 16000)
    found = rates_of(paths, ["utt3", "utt0"], frames_of([3.1, 0.4], 0.04, 1))
    assert found.frame_shift == 640
    assert rates_of(paths, ["other", "names"], [77, 9]).frame_shift is None


def test_headers_that_disagree_give_no_rate(tmp_path):
    (tmp_path / "a").mkdir()
    paths = recordings(tmp_path, 16000) + recordings(tmp_path / "a", 8000)
    found = rates_of(paths, [], [77] * len(paths))
    assert (found.sample_rate, found.frame_shift) == (None, None)
    assert found.reasons == ("the headers of the audio files say 8000 Hz, 16000 Hz",)


def test_short_audio_that_fits_several_shifts_gives_none(tmp_path):
    paths = recordings(tmp_path, 16000, [0.1])
    found = rates_of(paths, [], [2])
    assert found.sample_rate == 16000
    assert found.frame_shift is None
    assert "several frame shifts fit" in found.reasons[-1]


def test_files_that_are_missing_or_are_no_audio_are_left_out(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"no audio")
    assert rates_of([str(tmp_path / "x.wav"), str(tmp_path / "none.wav")], [], [5, 6]).sample_rate is None


def test_paths_are_found_in_mappings_lists_and_objects(tmp_path):
    class Cut:
        def __init__(self, path):
            self.source = path

    batch = {"cuts": [Cut(tmp_path / "a.wav"), Cut(tmp_path / "b.flac")], "text": ["c.wav is a name"], "n": 3}
    assert audio_paths(batch) == (str(tmp_path / "a.wav"), str(tmp_path / "b.flac"))
