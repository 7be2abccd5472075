"""C++ for graphs in which every row is computed by itself: short, quick to compile, for one block of rows at a time."""
