"""The base of what clients send: `true` is not a number, "5" is not 5, null is absent, unknown fields are ignored."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
