"""The hardware tiers: each is a file of settings in place of the defaults, and yields to all that the user sets."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

Tier = Literal["cpu", "6gb", "12gb", "24gb"]
# Gigabytes of GPU memory that each tier is made for, the largest first.
TIERS: dict[Tier, int] = {"24gb": 24, "12gb": 12, "6gb": 6, "cpu": 0}
DEFAULT: Tier = "cpu"

_FOLDER = Path(__file__).parent


def keys(tier: str) -> dict[str, Any]:
    """Return the settings of a tier; none where there is no tier of that name, which the settings then refuse."""
    path = _FOLDER / f"{tier}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if tier in TIERS else {}


class TierSource(PydanticBaseSettingsSource):
    """The settings of the tier that the sources before this one name."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return keys(str(self.current_state.get("tier", DEFAULT)))
