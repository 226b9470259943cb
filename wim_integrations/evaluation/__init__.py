"""`wim eval`: do margins help, on one's own model and documents? See ``docs/evaluation.md``.

`tasks` and `generated` give questions, `methods` and `frameworks` answer them, `scoring` and `statistics` judge the
answers, `records` keeps them, `report` and `plots` sum up, and `run` does it all in order.
"""
