"""Protection: levels, the mechanisms they are made of, and what of them a host can keep.

    plan("sandbox", Subject(name="counter", uid=700_001, binds=(...)), probe()).require()

gives the `Confinement` that a zygote carries out.
"""

from .confinement import Bind, Confinement, Limit
from .host import Host, probe
from .level import Level, Mechanism, Subject
from .plan import NoSuchLevel, NoSuchMechanism, NotDropped, Plan, Unprotected, Weakening, levels, plan

__all__ = [
    "Bind",
    "Confinement",
    "Host",
    "Level",
    "Limit",
    "Mechanism",
    "NoSuchLevel",
    "NoSuchMechanism",
    "NotDropped",
    "Plan",
    "Subject",
    "Unprotected",
    "Weakening",
    "levels",
    "plan",
    "probe",
]
