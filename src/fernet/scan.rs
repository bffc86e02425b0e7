use super::{Error, IV, Keyring, Token};

// Stands in for the scanner until that is merged.
impl Keyring {
    pub fn inspect_value(
        &self,
        value: &[u8],
        buf: &mut [u8],
        mut each: impl FnMut(Result<usize, Error>),
    ) {
        match Token::decode(value, buf).and_then(|t| self.opening_key(&t)) {
            Err(Error::NotAToken) => {}
            other => each(other),
        }
    }
    pub fn rotate_value<E>(
        &self,
        value: &[u8],
        buf: &mut [u8],
        mut iv: impl FnMut() -> Result<IV, E>,
        mut each: impl FnMut(Result<usize, Error>),
    ) -> Result<Option<usize>, E> {
        let iv = iv()?;
        self.inspect_value(value, buf, &mut each);
        Ok(Token::decode(value, buf)
            .and_then(|t| self.rotate(t, &iv))
            .ok()
            .flatten())
    }
}
