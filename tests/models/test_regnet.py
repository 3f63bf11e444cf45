"""RegNetY-160: the published file with its extra biases, and another member of the family."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from golden import empty_network, golden_images, golden_state, info, reference, tolerance
from paddlevit.regnet import RegNet

NAME = "regnety_160"


@pytest.mark.slow
def test_paddlevits_file_loads_as_it_is():
    """Plain `set_state_dict` leaves the biases out, which are zero in the published file."""
    model, state = empty_network(NAME, "float64"), golden_state(NAME, "paddlevit")
    missing, unexpected = model.set_state_dict({key: value.astype("float64") for key, value in state.items()})
    assert missing == []
    assert len(unexpected) == 18
    assert all(key.endswith(".conv3.bias") for key in unexpected)
    images = golden_images(0, info(NAME)["batch"], info(NAME)["image_size"])[:1].astype("float64")
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images)).numpy()
    expected = reference(NAME, "paddlevit")["logits_conv3_bias_zero_f64"][:1]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance(NAME, "paddlevit")["float64"])


def test_another_member_of_the_family():
    """RegNetY-200MF, whose published size is 3.2 M parameters."""
    model = RegNet(widths=(24, 56, 152, 368), depths=(1, 1, 4, 7), group_width=8)
    params = sum(param.size for param in model.parameters() if not param.stop_gradient)
    assert round(params / 1e6, 1) == 3.2
