"""What a trained network makes by itself: a text, a curve, images from a prior; and the pictures
that a run leaves in its folder.

What is possible follows from the data set and the stages of a run, never from its recipe's name.
"""
