"""Carbon intensity, and every conversion between energy, emissions and functional units.

The intensity is an input with a source: a number the user gives, or the yearly national figure in the table that
CodeCarbon ships. There is no default and no lookup over a network; without an intensity there are no emissions.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import ConfigError, MeasurementError, did_you_mean

__all__ = [
    "JOULES_PER_KWH",
    "NO_INTENSITY",
    "CarbonIntensity",
    "carbon_intensity",
    "emissions",
    "gco2e_per_1k_samples",
    "joules_to_kwh",
    "known_regions",
    "wh_per_1k_samples",
]

JOULES_PER_KWH = 3.6e6
NO_INTENSITY = "no region or carbon_intensity was given"
"""Why emissions are absent when `carbon_intensity` gives None."""

_TABLE = "data/private_infra/global_energy_mix.json"


@dataclass(frozen=True)
class CarbonIntensity:
    """Emissions of one kWh of electricity.

    Attributes:
        value_gco2e_per_kwh: gCO2e per kWh, >= 0.
        source: Where the figure comes from.
        year: Year it stands for; None when it wasn't said.
    """

    value_gco2e_per_kwh: float
    source: str
    year: int | None = None

    def __post_init__(self) -> None:
        """Refuses what can't be an intensity."""
        value = self.value_gco2e_per_kwh
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ConfigError(f"carbon_intensity must be a number of gCO2e per kWh, >= 0, got {value!r}.")


def carbon_intensity(
    region: str | None = None, value_gco2e_per_kwh: float | None = None, *, source: str = "", year: int | None = None
) -> CarbonIntensity | None:
    """The intensity a user asked for; None when neither a region nor a number was given.

    Args:
        region: ISO 3166 alpha-3 country code, such as ``FRA``.
        value_gco2e_per_kwh: gCO2e per kWh.
        source: Where the number comes from.
        year: Year the number stands for.

    Raises:
        ConfigError: Both were given, the region is unknown, or the number isn't one.
    """
    if region and value_gco2e_per_kwh is not None:
        raise ConfigError(
            f"region {region!r} and carbon_intensity {value_gco2e_per_kwh!r} were both given. Give one of them."
        )
    if value_gco2e_per_kwh is not None:
        return CarbonIntensity(value_gco2e_per_kwh, source or "given by the user", year)
    return _of_region(region) if region else None


def _of_region(region: str) -> CarbonIntensity:
    table = _energy_mix()
    code = region.strip().upper()
    if code not in table:
        named = [k for k, row in table.items() if str(row.get("country_name", "")).upper() == code]
        hint = f"Did you mean {named[0]!r}?" if named else did_you_mean(code, table)
        raise ConfigError(
            f"Unknown region {region!r}. {hint} A region is an ISO 3166 alpha-3 country code; "
            "any other place can be given as carbon_intensity, in gCO2e per kWh."
        )
    row = table[code]
    value = row.get("carbon_intensity")
    if not value:  # one country has 0.0 there, which is a gap in the table and no clean grid
        raise ConfigError(f"CodeCarbon's table has no figure for region {code!r}. Give carbon_intensity instead.")
    version = importlib.metadata.version("codecarbon")
    source = f"CodeCarbon {version}, {_TABLE.rsplit('/', 1)[1]}, {row['country_name']} ({code})"
    return CarbonIntensity(float(value), source, int(row["year"]))


def known_regions() -> dict[str, float]:
    """Carbon intensity by country code, gCO2e/kWh, of every country in CodeCarbon's table.

    Raises:
        MeasurementError: The table can't be read.
    """
    rows = _energy_mix().items()
    return {code: float(row["carbon_intensity"]) for code, row in sorted(rows) if row.get("carbon_intensity")}


@lru_cache(maxsize=1)
def _energy_mix() -> dict[str, dict[str, Any]]:
    """CodeCarbon's own table, read as a file: importing the package costs pandas."""
    try:
        text = importlib.resources.files("codecarbon").joinpath(_TABLE).read_text(encoding="utf-8")
        table: dict[str, dict[str, Any]] = json.loads(text)
    except (ImportError, OSError, ValueError) as error:
        raise MeasurementError(
            f"CodeCarbon's table {_TABLE} can't be read: {error}. Give carbon_intensity instead of region."
        ) from error
    return table


def emissions(energy_kwh: float, intensity: CarbonIntensity, *, pue: float = 1.0) -> float:
    """Emissions in kgCO2e of ``energy_kwh`` at the machine.

    Args:
        energy_kwh: Energy that the machine took, kWh, without its building.
        intensity: What a kWh emits.
        pue: Power usage effectiveness of the building, >= 1.

    >>> round(emissions(2.0, CarbonIntensity(475, "example"), pue=1.5), 6)
    1.425
    """
    if not (math.isfinite(pue) and pue >= 1.0):
        raise ConfigError(f"pue must be at least 1, got {pue!r}. 1 means no overhead of the building.")
    return energy_kwh * pue * intensity.value_gco2e_per_kwh / 1000.0


def joules_to_kwh(joules: float) -> float:
    """Kilowatt-hours of ``joules``."""
    return joules / JOULES_PER_KWH


def wh_per_1k_samples(joules_per_sample: float) -> float:
    """Watt-hours of a thousand samples.

    >>> wh_per_1k_samples(3.6)
    1.0
    """
    return joules_to_kwh(joules_per_sample) * 1000.0 * 1000.0


def gco2e_per_1k_samples(wh_per_1k: float, intensity: CarbonIntensity, *, pue: float = 1.0) -> float:
    """Grams CO2e of a thousand samples that take ``wh_per_1k`` watt-hours."""
    return emissions(wh_per_1k / 1000.0, intensity, pue=pue) * 1000.0
