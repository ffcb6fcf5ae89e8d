"""The picture of a comparison: nothing in it covers anything else, whatever the task is called."""

from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib")

from seqconv.experiments.report import figure


def outcome(model, test, ms_per_step):
    return SimpleNamespace(model=model, test=test, ms_per_step=ms_per_step)


def test_title_and_legend_do_not_overlap_and_stay_within_the_picture():
    task = SimpleNamespace(
        title="Jena temperature in 24 hours: mean absolute error, in standard deviations",
        origin="real data",
        metric=SimpleNamespace(name="mean_absolute_error"),
    )
    outcomes = [outcome(f"model {number}", 0.7 + number / 100, 10.0 + number) for number in range(8)]
    picture = figure(task, [*outcomes, outcome("temperature now", 0.9, None)])
    picture.canvas.draw()
    renderer = picture.canvas.get_renderer()
    title, (legend,), (axes,) = picture._suptitle, picture.legends, picture.axes
    boxes = [title.get_window_extent(renderer), legend.get_window_extent(renderer), axes.get_tightbbox(renderer)]
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:place])
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= picture.bbox.x1
        assert box.y1 <= picture.bbox.y1
