"""Units of answers: names, what they measure, and the exact factor to the SI unit of that. Standard library only.

Factors are the definitions (SI brochure, 9th edition; international yard and pound of 1959). Temperatures are left out
(they need an offset), radians too (their factor is not rational).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Unit:
    """A number in this unit times `factor` is the number in the base unit of `measures`."""

    name: str
    measures: str
    factor: Fraction


_TABLE = """
length    m=1 metre meter | km=1000 kilometre kilometer | cm=1/100 centimetre centimeter
length    mm=1/1000 millimetre millimeter
length    in=0.0254 inch inches | ft=0.3048 foot feet | yd=0.9144 yard | mi=1609.344 mile
mass      kg=1 kilogram kilogramme | g=1/1000 gram gramme | mg=1/1000000 milligram | t=1000 tonne
mass      lb=0.45359237 lbs pound | oz=0.028349523125 ounce
time      s=1 sec second | ms=1/1000 millisecond | min=60 minute | h=3600 hr hrs hour | day=86400 | week=604800
area      m^2=1 m2 m² square_metre square_meter | cm^2=1/10000 cm2 cm² square_centimetre square_centimeter
area      km^2=1000000 km2 km² square_kilometre square_kilometer
area      ft^2=0.09290304 ft2 ft² square_foot square_feet | in^2=0.00064516 in2 in² square_inch square_inches
volume    m^3=1 m3 m³ cubic_metre cubic_meter
volume    cm^3=1/1000000 cm3 cm³ ml mL millilitre milliliter cubic_centimetre cubic_centimeter
volume    l=1/1000 L litre liter
speed     m/s=1 metre_per_second meter_per_second metres_per_second meters_per_second
speed     km/h=5/18 kph kmh kilometre_per_hour kilometres_per_hour kilometers_per_hour
speed     mph=0.44704 mile_per_hour miles_per_hour mi/h
angle     degree=1 ° deg
energy    J=1 joule | kJ=1000 kilojoule | kWh=3600000
power     W=1 watt | kW=1000 kilowatt
force     N=1 newton
money     dollar=1 $ USD usd | cent=1/100 ¢
money-eur euro=1 € EUR eur
money-gbp pound_sterling=1 £ GBP gbp
"""


def _read(table: str) -> dict[str, Unit]:
    known: dict[str, Unit] = {}
    for line in table.strip().splitlines():
        measures, rest = line.split(None, 1)
        for entry in rest.split("|"):
            first, *others = entry.split()
            name, _, factor = first.partition("=")
            unit = Unit(name, measures, Fraction(factor))
            for spelling in (name, *others):
                spelling = spelling.replace("_", " ")
                known[spelling] = unit
                if len(spelling) > 2 and spelling[-1].isalpha() and not spelling.endswith(("s", "feet")):
                    known[spelling + "s"] = unit
    return known


UNITS = _read(_TABLE)


def find(text: str) -> Unit | None:
    """The unit of that name or symbol ("km", "kilometres", "cm^{2}"), or None. Symbols are case-sensitive, names are not."""
    name = re.sub(r"\^\s*\{\s*(\d)\s*\}", r"^\1", text.strip().rstrip("."))
    name = re.sub(r"\s*([/^])\s*", r"\1", name.replace("\\", "")).strip()
    return UNITS.get(name) or (UNITS.get(name.lower()) if len(name) > 3 else None)
