"""MetaMix (AAAI 2024): bit-meta and bit-search training, then weight training."""

# Registered with Keras here: a saved model's optimizer may have this schedule.
from keras_metamix.metamix.schedule import SelectionThenCosine as SelectionThenCosine
