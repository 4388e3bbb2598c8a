"""How each family lays a picture out in image tokens: one small rule per layout.

`table` says which family follows which rule. `grids` has what rules are made of, and
the plainest of them; `crops`, `tiles` and `marked` are for pictures cut in parts,
`canvases` for padded ones, `rows` and `single` for one grid.
"""
