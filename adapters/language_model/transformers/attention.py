"""Which code computes the attention: FlashAttention-2 where it can be had, else torch's own."""

from collections.abc import Callable

from domain.errors import BackendUnavailable, BadConfiguration, ZishuError

FLASH, PLAIN = "flash_attention_2", "sdpa"
# FlashAttention-2 needs Ampere or newer (github.com/Dao-AILab/flash-attention, "NVIDIA CUDA Support").
_OLDEST = (8, 0)
_SECTION = 'Set [language_model.transformers] attention = "sdpa"'


def refusal(
    precision: str, device: str, capability: tuple[int, int] | None, installed: Callable[[str], bool]
) -> ZishuError | None:
    """Return why FlashAttention-2 cannot be had, with what to choose instead; None where it can.

    Args:
        precision: A key of `precision.FORMS`; what computes in fp32 has no flash attention.
        device: `cpu` or `cuda`.
        capability: The compute capability of the GPU.
        installed: Tells whether a library is installed.
    """
    if device != "cuda":
        return BadConfiguration("FlashAttention-2 computes on a GPU only.", f"{_SECTION}.")
    if precision in ("fp32", "int8_dynamic"):
        return BadConfiguration(
            f"FlashAttention-2 does not compute in fp32, and the precision is {precision}.",
            f'{_SECTION}, or precision = "bf16".',
        )
    if capability is None or capability < _OLDEST:
        return BadConfiguration("FlashAttention-2 needs an Ampere GPU or a newer one.", f"{_SECTION}.")
    if not installed("flash_attn"):
        return BackendUnavailable(
            "FlashAttention-2 needs 'flash-attn', which is not installed.",
            f"Run: pip install -e '.[flash]' --no-build-isolation; or: {_SECTION[0].lower()}{_SECTION[1:]}.",
        )
    return None


def chosen(
    asked: str, precision: str, device: str, capability: tuple[int, int] | None, installed: Callable[[str], bool]
) -> str:
    """Return what transformers calls the attention to use.

    Args:
        asked: `auto` or a name of transformers.
        precision: As for `refusal`.
        device: As for `refusal`.
        capability: As for `refusal`.
        installed: As for `refusal`.

    Raises:
        BadConfiguration: It was asked for and does not go with the device or the precision.
        BackendUnavailable: It was asked for and is not installed.
    """
    if asked not in ("auto", FLASH):
        return asked
    refused = refusal(precision, device, capability, installed)
    if refused and asked == FLASH:
        raise refused
    return PLAIN if refused else FLASH
