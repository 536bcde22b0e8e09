"""The type of a config, a locked `ml_collections.ConfigDict`.

Its stubs give every field the union of all types a field may have, so that no field could be used
without a cast. Which fields there are is checked where a config is made: it is locked.
"""

from typing import Any

Config = Any
