"""The grid: what an audit measures, its scenarios, and a report of what was found."""
