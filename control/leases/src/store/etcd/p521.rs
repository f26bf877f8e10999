//! The curve P-521 for certificates and keys, which `ring` does not have.

use std::sync::LazyLock;

use p521::ecdsa::signature::hazmat::PrehashVerifier;
use p521::ecdsa::{Signature, VerifyingKey};
use rustls::SignatureScheme;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use sha2::{Digest, Sha256, Sha384, Sha512};

/// What TLS is made with: `ring`, and signatures on this curve.
pub(super) fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.signature_verification_algorithms =
        WebPkiSupportedAlgorithms { all: &ALGORITHMS, mapping: &SCHEMES };
    provider
}

type Algorithm = &'static dyn SignatureVerificationAlgorithm;

static ALGORITHMS: LazyLock<Vec<Algorithm>> = LazyLock::new(|| {
    let others = ring::default_provider().signature_verification_algorithms.all;
    others.iter().copied().chain([SHA256, SHA384, SHA512]).collect()
});

static SCHEMES: LazyLock<Vec<(SignatureScheme, &'static [Algorithm])>> = LazyLock::new(|| {
    let others = ring::default_provider().signature_verification_algorithms.mapping;
    let ours = (SignatureScheme::ECDSA_NISTP521_SHA512, &[SHA512] as &'static [Algorithm]);
    others.iter().copied().chain([ours]).collect()
});

const SHA256: Algorithm =
    &P521 { name: alg_id::ECDSA_SHA256, hash: |message| Sha256::digest(message).to_vec() };
const SHA384: Algorithm =
    &P521 { name: alg_id::ECDSA_SHA384, hash: |message| Sha384::digest(message).to_vec() };
const SHA512: Algorithm =
    &P521 { name: alg_id::ECDSA_SHA512, hash: |message| Sha512::digest(message).to_vec() };

/// ECDSA on this curve with some hash.
#[derive(Debug)]
struct P521 {
    name: AlgorithmIdentifier,
    hash: fn(&[u8]) -> Vec<u8>,
}

impl SignatureVerificationAlgorithm for P521 {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let verify = || {
            let key = VerifyingKey::from_sec1_bytes(key).ok()?;
            let signature = Signature::from_der(signature).ok()?;
            // As a number of the curve's length, which a short hash is not taken for otherwise.
            let hash = (self.hash)(message);
            let mut number = [0; FIELD];
            number[FIELD - hash.len()..].copy_from_slice(&hash);
            key.verify_prehash(&number, &signature).ok()
        };
        verify().ok_or(InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.name
    }
}

/// 521 bits, in bytes.
const FIELD: usize = 66;
