// Required by mocha before ioredis' tests: they name the ports of their servers, and ours are others.
const net = require("net");

const ports = JSON.parse(process.env.KEYHEAT_COMPAT_PORTS);
const connect = net.Socket.prototype.connect;

net.Socket.prototype.connect = function (...args) {
  const options = Array.isArray(args[0]) ? args[0][0] : args[0];
  if (options && typeof options === "object" && ports[options.port]) {
    options.port = ports[options.port];
  }
  return connect.apply(this, args);
};

// What fails late in a test that is left out, or fails directly, would be taken for a failure of the next.
const leftOut = new Set(JSON.parse(process.env.KEYHEAT_COMPAT_LEFT_OUT || "[]"));

exports.mochaHooks = {
  beforeEach() {
    if (leftOut.has(this.currentTest.fullTitle())) {
      this.skip();
    }
  },
};
