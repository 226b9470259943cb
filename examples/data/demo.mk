DEMO_FILE := examples/data/alice-chapters-3-4.txt
DEMO_QUESTION := What did the Rabbit tell Mary Ann to run home and fetch?
