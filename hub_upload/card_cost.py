"""What a training run cost in energy and carbon, estimated by the published Green Algorithms formula."""

import re
from dataclasses import dataclass
from typing import Any

# Lannelongue, Grealey & Inouye 2021, 10.1002/advs.202100707: a core of unknown type, memory, an average data centre,
# the world's average electricity.
WATTS_PER_CORE = 12.0
WATTS_PER_GB = 0.3725
POWER_USAGE_EFFECTIVENESS = 1.67
GRAMS_CO2E_PER_KWH = 475.0

# Thermal design power in watts, from the makers' data sheets. The first pattern that is found in the name counts.
_GPU_WATTS = (
    (r"\bT4\b", 70),
    (r"\bP100\b", 250),
    (r"\bV100.*SXM", 300),
    (r"\bV100", 250),
    (r"\bA100.*SXM", 400),
    (r"\bA100.*80GB PCIe", 300),
    (r"\bA100", 250),
    (r"\bH200", 700),
    (r"\bH100.*PCIe", 350),
    (r"\bH100 NVL", 400),
    (r"\bH100", 700),
    (r"\bL40S\b", 350),
    (r"\bL4\b", 72),
    (r"\bA10\b", 150),
    (r"RTX A6000", 300),
    (r"RTX 3090(?! Ti)", 350),
    (r"RTX 4090", 450),
)


@dataclass(frozen=True)
class Footprint:
    """An estimate of a run's energy and emissions.

    Attributes:
        kilowatt_hours: Energy with the data centre's overhead.
        grams_co2e: Emissions.
        hardware: What was counted, in words.
    """

    kilowatt_hours: float
    grams_co2e: float
    hardware: str


def gpu_watts(model: str) -> float | None:
    """Thermal design power of a GPU in watts, or None for one that is not listed."""
    return next((float(watts) for pattern, watts in _GPU_WATTS if re.search(pattern, model)), None)


def training_footprint(training: dict[str, Any] | None) -> Footprint | None:
    """Runtime x (cores x 12 W + memory x 0.3725 W/GB + GPUs x their design power) x 1.67, at 475 g CO2e per kWh.

    Cores and GPUs count as fully used and the whole memory of the machine as occupied.

    Args:
        training: A `train_config.json`, or None.

    Returns:
        The estimate, or None without a run or for a GPU whose power is not known.
    """
    if training is None or not training["training_seconds"]:
        return None
    environment = training["environment"]
    cores, gigabytes = environment["cpu"]["count"], environment["memory_mib"] / 1024
    hardware = f"{cores} cores of {environment['cpu']['model']}, {gigabytes:.0f} GB of memory"
    watts = cores * WATTS_PER_CORE + gigabytes * WATTS_PER_GB
    if training["device"] != "cpu":
        gpu = environment.get("gpu")
        per_gpu = None if gpu is None else gpu_watts(gpu["model"])
        if per_gpu is None:
            return None
        watts += training["processes"] * per_gpu
        hardware = f"{training['processes']} x {gpu['model']}, {hardware}"
    kilowatt_hours = training["training_seconds"] / 3600 * watts / 1000 * POWER_USAGE_EFFECTIVENESS
    return Footprint(kilowatt_hours, kilowatt_hours * GRAMS_CO2E_PER_KWH, hardware)


__all__ = [
    "GRAMS_CO2E_PER_KWH",
    "POWER_USAGE_EFFECTIVENESS",
    "WATTS_PER_CORE",
    "WATTS_PER_GB",
    "Footprint",
    "gpu_watts",
    "training_footprint",
]
