"""What masking and the models must know about token ids."""

import dataclasses

# Symbol → its names in tokenizers in the wild.
SYMBOL_NAMES = {
    'pad': ('[PAD]', '<pad>'),
    'cls': ('[CLS]', '<cls>', '<s>'),
    'sep': ('[SEP]', '<sep>', '</s>'),
    'mask': ('[MASK]', '<mask>'),
}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer with a meaning of their own; all others are ordinary text.

    Attributes:
      size: number of ids; ids are 0 … size − 1.
      pad_id: fills a row behind its last token; never attended to.
      cls_id: starts a row, or, in document-restricted packing, each document within it.
      sep_id: ends each document.
      mask_id: the [MASK] token.
      special_ids: every id that is never masked and never drawn as a random replacement, ascending. It holds
        the four ids above and further control symbols (the unknown token among them).
    """

    size: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, 'special_ids', tuple(self.special_ids))
        if list(self.special_ids) != sorted(set(self.special_ids)):
            raise ValueError(f'special_ids must be ascending and unique, not {self.special_ids}')
        for name in ('pad_id', 'cls_id', 'sep_id', 'mask_id'):
            if getattr(self, name) not in self.special_ids:
                raise ValueError(f'{name} = {getattr(self, name)} is missing in special_ids = {self.special_ids}')
        if not 0 <= self.special_ids[0] <= self.special_ids[-1] < self.size:
            raise ValueError(f'special_ids = {self.special_ids} lie outside 0 … {self.size - 1}')
        if self.num_ordinary < 1:
            raise ValueError('a vocabulary needs at least one id that is not special')

    @property
    def num_ordinary(self) -> int:
        """Number of ids that are ordinary text."""
        return self.size - len(self.special_ids)

    def padded(self, size: int) -> 'Vocabulary':
        """The same with ids up to `size` − 1: those that no piece has are special. `size` is not smaller than it is."""
        return dataclasses.replace(self, size=size, special_ids=(*self.special_ids, *range(self.size, size)))


def standard_vocabulary(size: int) -> Vocabulary:
    """The layout of the tokenizers trained here: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then text."""
    return Vocabulary(size=size, pad_id=0, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4))
