"""Groups: images that belong together, such as those of one patient, and must be on one side of every split. Pure."""

import posixpath
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import BadInput
from orchestrator.words import plural


def with_groups(images: pa.Table, group_by: str | None, grouped: bool, uri: str) -> pa.Table:
    """The images with the group of each. Raises BadInput where there is only one group, or none.

    images: as layout.IMAGES. group_by: see spec.sections.Data. grouped: whether the images have the groups of a column.
    """
    if group_by is None or grouped:
        return images
    paths = images["path"].to_pylist()
    if group_by == "folder":
        groups: list[str | None] = [posixpath.dirname(path) for path in paths]
    else:
        pattern = _pattern(group_by)
        groups = [found[1] if (found := pattern.search(path)) else None for path in paths]
    count = len(set(groups) - {None})
    if count < 2 or (group_by == "folder" and count <= pc.count_distinct(images["name"]).as_py()):
        what = "folders of each class" if group_by == "folder" else "groups, one found in each path"
        raise BadInput(
            f"data.group_by must find several {what} in {uri}, got {count} with {group_by!r}, as in {paths[0]}"
        )
    at = images.schema.get_field_index("group")
    return images.set_column(at, "group", pa.array(groups, pa.string()))


def groups_apart(images: pa.Table, part: np.ndarray) -> list[str]:
    """A note on groups that lie in several parts, as only a split that the data bring can have them."""
    if images["group"].null_count == len(images):
        return []
    pairs = pa.table({"group": images["group"], "part": part}).group_by(["group", "part"]).aggregate([])
    counts = pairs.filter(pc.is_valid(pairs["group"])).group_by("group").aggregate([([], "count_all")])
    apart = sorted(counts.filter(pc.greater(counts["count_all"], 1))["group"].to_pylist())
    if not apart:
        return []
    named = ", ".join(apart[:3]) + ", …" * (len(apart) > 3)
    return [f"{plural(len(apart), 'group')} on several sides of the split that the data bring: {named}"]


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise BadInput(f"data.group_by must be a regular expression, got {text!r}: {error}") from None
    if pattern.groups != 1:
        raise BadInput(
            f"data.group_by must be a column of the table, folder, or a regular expression with one group in round "
            f"brackets, such as '([^/_]+)_', got {text!r}"
        )
    return pattern
