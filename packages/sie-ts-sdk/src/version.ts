/** The SDK's version, sent as `X-SIE-SDK-Version`. A test keeps it equal to the one in package.json. */
export const VERSION = "1.0.0";
