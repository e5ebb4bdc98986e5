"""What is handed to others: the wheels of the fork, with an index, constraints, notes and sums.

It may import ``tool.wheel`` and what is below it.
"""

from tool.publish.publish import Published, PublishedWheel, publish_wheels

__all__ = ["Published", "PublishedWheel", "publish_wheels"]
