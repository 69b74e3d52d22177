import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax

from mnist_flax.inference import metrics

rng = np.random.RandomState(0)
LOGITS = 3 * rng.standard_normal((2000, 10))
# Labels drawn from the model's own probabilities: it is calibrated, up to sampling.
LABELS = np.array([rng.choice(10, p=p) for p in np.exp(log_softmax(LOGITS, axis=-1))])
CALIBRATED = log_softmax(LOGITS, axis=-1)


@pytest.mark.parametrize(("correct", "count"), [(97, 100), (100, 100), (0, 7), (9962, 10_000), (1, 1)])
def test_accuracy_interval_is_wilsons(correct, count):
    expected = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert metrics.accuracy_interval(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_calibration_error():
    assert metrics.calibration_error(LABELS, CALIBRATED) < 0.04
    log_probabilities = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.35, 0.65]]))
    # Bin of 0.9: accuracy 1/2, off by 0.4; bins of 0.7 and 0.65: accuracy 1, off by 0.3 and 0.35.
    error = metrics.calibration_error(np.array([0, 1, 1, 1]), log_probabilities)
    assert error == pytest.approx((2 * 0.4 + 0.3 + 0.35) / 4)


def test_temperature_undoes_overconfidence():
    temperature = metrics.fit_temperature(LABELS, metrics.scaled(CALIBRATED, 1 / 3))
    assert temperature == pytest.approx(3, rel=0.1)
    scaled = metrics.scaled(metrics.scaled(CALIBRATED, 1 / 3), temperature)
    assert metrics.calibration_error(LABELS, scaled) < metrics.calibration_error(
        LABELS, metrics.scaled(CALIBRATED, 1 / 3)
    )
    assert metrics.cross_entropy(LABELS, scaled) == pytest.approx(metrics.cross_entropy(LABELS, CALIBRATED), rel=0.01)


def test_a_network_without_an_error_is_not_made_certain():
    right = log_softmax(np.eye(10)[np.arange(100) % 10], axis=-1)
    temperature = metrics.fit_temperature(np.arange(100) % 10, right)
    # As if half an image beside the 100 had any label.
    assert np.exp(metrics.scaled(right, temperature).max()) == pytest.approx(100.05 / 100.5, abs=1e-4)
