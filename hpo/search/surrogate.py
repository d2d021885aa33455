"""What a study may expect of settings that it has not tried: a Gaussian process over the unit cube of the space.

Responsible for a mean and a deviation of the value at any point, from values that are known more or less exactly, and
for the improvement to be expected there (Jones, Schonlau & Welch 1998, Journal of Global Optimization 13). Knows
points and numbers, no trials. May assume that smaller values are better.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

Array = NDArray[np.float64]
# In widths of the cube: nothing that a few dozen trials can tell varies faster, and what varies slower is a slope.
LENGTHS, FIRST_LENGTH = (0.3, 10.0), 1.0
# Share of the values' variance that neighbours do not explain: rounding is chaotic in small things. The fit begins with
# half of it, or a few lucky values would pass for a narrow valley.
ROUGHNESS, FIRST_ROUGHNESS = (0.02, 1.5), 0.5
LEAST_SPREAD = 1e-9


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """A fitted process.

    Attributes:
        process: On values that were shifted by `center` and divided by `scale`.
        center: In the values' unit.
        scale: In the values' unit.
    """

    process: GaussianProcessRegressor
    center: float
    scale: float

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Return mean and deviation of what would be measured at points `[n, dimensions]`, both `[n]`."""
        mean, deviation = self.process.predict(points, return_std=True)
        return self.center + self.scale * mean, self.scale * deviation

    def differences(self, points: Array, others: Array) -> tuple[Array, Array]:
        """Return what the smooth part is expected to be at `points` minus at `others`, and its deviation.

        What each setting has for itself, the noise of the process, is left out (Rasmussen & Williams 2006, equations
        2.25 and 2.26, of a difference).

        Args:
            points: In the unit cube, `[n, dimensions]`.
            others: In the unit cube, `[m, dimensions]`.

        Returns:
            Mean and deviation, both `[n, m]`.
        """
        process, smooth = self.process, self.process.kernel_.k1
        means = [process.predict(part) for part in (points, others)]
        solved = [solve_triangular(process.L_, smooth(process.X_train_, part), lower=True) for part in (points, others)]
        variances = [smooth.diag(part) - (half**2).sum(0) for part, half in zip((points, others), solved, strict=True)]
        shared = smooth(points, others) - solved[0].T @ solved[1]
        variance = variances[0][:, None] + variances[1] - 2 * shared
        mean = means[0][:, None] - means[1]
        return self.scale * mean, self.scale * np.sqrt(np.maximum(variance, 0))

    def fantasized(self, points: Array) -> "Surrogate":
        """Add fantasy observations: `points` as if they were measured where the process expects them.

        With several workers, each then looks elsewhere (the kriging believer of Ginsbourger, Le Riche & Carraro 2010).

        Args:
            points: In the unit cube, `[n, dimensions]`.
        """
        expected = self.process.predict(points)
        process = GaussianProcessRegressor(
            self.process.kernel_, alpha=np.append(self.process.alpha, np.full(len(points), 1e-10)), optimizer=None
        )
        process.fit(np.vstack([self.process.X_train_, points]), np.append(self.process.y_train_, expected))
        return Surrogate(process=process, center=self.center, scale=self.scale)


def expected_improvement(mean: Array, deviation: Array, best: Array | float) -> Array:
    """Compute `E[max(0, best - value)]` of normal values (Jones et al. 1998, equation 15)."""
    standard = (best - mean) / np.maximum(deviation, LEAST_SPREAD)
    return np.asarray((best - mean) * stats.norm.cdf(standard) + deviation * stats.norm.pdf(standard))


def fit(points: Array, values: Array, variances: Array) -> Surrogate:
    """Fit the process of greatest likelihood (Rasmussen & Williams 2006, chapter 5; Matern kernel with nu 5/2).

    Args:
        points: In the unit cube, `[n, dimensions]`, n at least 1.
        values: `[n]`, all finite.
        variances: Of the errors of the values, `[n]`; 0 where one is exact.
    """
    center, scale = float(np.median(values)), float(max(values.std(), LEAST_SPREAD))
    smooth = Matern(np.full(points.shape[1], FIRST_LENGTH), LENGTHS, nu=2.5)
    kernel = ConstantKernel(1 - FIRST_ROUGHNESS, (0.05, 20.0)) * smooth + WhiteKernel(FIRST_ROUGHNESS, ROUGHNESS)
    process = GaussianProcessRegressor(kernel, alpha=variances / scale**2 + 1e-10)
    with warnings.catch_warnings():
        # A bound that is reached, or a search that ends early, still gives a usable process.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(points, (values - center) / scale)
    return Surrogate(process=process, center=center, scale=scale)
