"""The table: every setting, one row each. A new setting is a row in the list of its subject."""

from tests.settings.classes import CLASSES
from tests.settings.flags import FLAGS
from tests.settings.row import Row
from tests.settings.trainers import TRAINERS
from tests.settings.variants import VARIANTS
from tests.settings.ways_of_saving import WAYS

ROWS: list[Row] = [*FLAGS, *VARIANTS, *CLASSES, *TRAINERS, *WAYS]
