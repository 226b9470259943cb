DEMO_FILE := examples/data/alice-chapters-3-4.txt
DEMO_QUESTION := What name was engraved on the bright brass plate on the door of the house?
