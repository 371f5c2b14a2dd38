"""How numbers are written, the same in the terminal, in Markdown, in figures and on the page.

Quantities keep three significant digits and a decimal prefix (1 k = 1000). What was not measured
is an en dash, never a zero.
"""

from collections.abc import Callable, Sequence

MISSING = "–"


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent, for magnitudes below 1000."""
    magnitude = abs(value)
    decimals = 2 if magnitude < 9.995 else 1 if magnitude < 99.95 else 0
    return f"{value:.{decimals}f}"


def _scaled(value: float, units: Sequence[str]) -> str:
    """Writes `value` in the first unit that keeps it below 1000 after rounding."""
    if abs(value) < 999.5:
        number = f"{value:.0f}" if float(value).is_integer() else _three_digits(value)
        return f"{number} {units[0]}".strip()
    prefix = 0
    while abs(value) >= 999.5 and prefix < len(units) - 1:
        value, prefix = value / 1000, prefix + 1
    return f"{_three_digits(value)} {units[prefix]}"


def count(value: float | None) -> str:
    """A count of operations, MACs or weights: `12345678` becomes `12.3 M`."""
    return MISSING if value is None else _scaled(value, ("", "k", "M", "G", "T"))


def size(num_bytes: float | None) -> str:
    """A file size in decimal units: `48200` becomes `48.2 kB`."""
    return MISSING if num_bytes is None else _scaled(num_bytes, ("B", "kB", "MB", "GB"))


def duration(microseconds: float | None) -> str:
    """A latency: `812.4` becomes `812 µs`, `1234` becomes `1.23 ms`."""
    return MISSING if microseconds is None else _scaled(microseconds, ("µs", "ms", "s"))


def percent(fraction: float | None) -> str:
    """A fraction in [0, 1] as a percentage with two decimals: `0.91` becomes `91.00 %`."""
    return MISSING if fraction is None else f"{100 * fraction:.2f} %"


def ratio(value: float) -> str:
    """A factor: `0.983` becomes `0.98x`."""
    return f"{_three_digits(value)}x"


def bits(value: float) -> str:
    """A bit-width or an average of them: `8` stays `8`, `3.4167` becomes `3.42`."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}"


def wall_time(seconds: float) -> str:
    """A run time: `59` becomes `59 s`, `300` becomes `5 min 0 s`, `7260` becomes `2 h 1 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def shorten(name: str, limit: int) -> str:
    """Cuts the middle out of a name longer than `limit` characters: both ends tell layers apart."""
    if len(name) <= limit:
        return name
    head = (limit - 1) // 2
    return f"{name[:head]}…{name[len(name) - (limit - 1 - head) :]}"


def cost_name(kind: str) -> str:
    """What a budget counts, in words."""
    return _COSTS[kind][0] if kind in _COSTS else kind


def cost(kind: str, value: float, round: bool = False) -> str:
    """A cost in its unit; `round` leaves out a tick's zeros."""
    text = _COSTS[kind][1](value) if kind in _COSTS else count(value)
    number, _, unit = text.partition(" ")
    return f"{float(number):g} {unit}".strip() if round else text


_COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "bops": ("BOPs", count),
    "latency_us": ("predicted latency", duration),
    "size_bytes": ("file size", size),
}
