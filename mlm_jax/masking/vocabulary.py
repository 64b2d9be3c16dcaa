"""What masking and the models must know about token ids."""

import dataclasses

# Symbol → the names that published tokenizers give it.
SYMBOL_NAMES = {
    'pad': ('[PAD]', '<pad>', '<|pad|>'),
    'cls': ('[CLS]', '<cls>', '<s>', '<bos>'),
    'sep': ('[SEP]', '<sep>', '</s>', '<eos>'),
    'mask': ('[MASK]', '<mask>', '<|mask|>'),
}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The special ids of a tokenizer; all other ids are ordinary text.

    Attributes:
      size: number of ids; ids are 0 … size − 1.
      pad_id: fills a row after its last token; no text token attends to it.
      cls_id: starts each row; if rows are packed with several documents, each document.
      sep_id: ends each document.
      mask_id: the [MASK] token.
      special_ids: in ascending order, every id that is never masked and never drawn as a random replacement: the four
        ids above and other control symbols, such as the unknown token.
    """

    size: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, 'special_ids', tuple(self.special_ids))
        if list(self.special_ids) != sorted(set(self.special_ids)):
            raise ValueError(f'special_ids must be ascending and unique, not {self.special_ids}')
        for name in ('pad_id', 'cls_id', 'sep_id', 'mask_id'):
            if getattr(self, name) not in self.special_ids:
                raise ValueError(f'{name} = {getattr(self, name)} is missing from special_ids = {self.special_ids}')
        if not 0 <= self.special_ids[0] <= self.special_ids[-1] < self.size:
            raise ValueError(f'special_ids = {self.special_ids} lie outside 0 … {self.size - 1}')
        if self.num_ordinary < 1:
            raise ValueError('a vocabulary needs at least one id that is not special')

    @property
    def num_ordinary(self) -> int:
        """Number of ids that are ordinary text."""
        return self.size - len(self.special_ids)

    def padded(self, size: int) -> 'Vocabulary':
        """The vocabulary extended to `size` ids, which must be at least its own size; the added ids are special."""
        return dataclasses.replace(self, size=size, special_ids=(*self.special_ids, *range(self.size, size)))


def standard_vocabulary(size: int) -> Vocabulary:
    """The layout of the tokenizers trained here: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then ordinary text."""
    return Vocabulary(size=size, pad_id=0, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4))
