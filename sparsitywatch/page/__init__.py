"""A run as one page that says it in a minute: as a file, in TensorBoard, over HTTP, in notebooks.

web/ has the page itself: plain modules of JavaScript with types in their comments, and uPlot.
Nothing is imported here, as TensorBoard looks for its plugins through this package.
"""
